"""KFP components: thin, typed, one file each. They parse their sections, call ``deeprec`` and hold no logic.

A component takes configuration sections as dictionaries and other tasks' artifacts; a gate gives its verdict as a JSON
string named ``verdict``, and a task behind a gate takes that string as ``gate`` and refuses when it did not pass.
Nothing is installed when a component starts: the image holds everything. KFP reads annotations as objects, so these
files do without ``from __future__ import annotations``.
"""

IMAGE = "deeprec-python"
"""Image named when a component is used by itself; the pipeline names its own. KFP's subprocess runner warns about an
image whose name does not hold ``python``."""
