"""The one stand-in for a cluster: an API server, KServe's controller with a gateway, and KFP's API, over HTTP."""
