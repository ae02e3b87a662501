"""What reaches users: releases on KServe, the schedule of training runs on KFP, and whether the world has moved.

``deeprec release`` turns a bundle on a shelf into what serves, by canary, and back; ``deeprec schedule`` lets runs
begin by themselves; ``deeprec drift`` looks whether one should. KServe's and KFP's servers are spoken to here alone.
"""

STEPS = ("canary", "smoke", "ramp", "promote", "soak")
"""The steps of a release, in order."""
