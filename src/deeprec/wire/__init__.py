"""What goes over HTTP, once: requests, recommendations and why they are what they are, events.

The servers check what they are asked against these models and build what they answer from them, the OpenAPI document
is made of them, and the clients read answers with them. Nothing here knows a model, a store or a server.
"""
