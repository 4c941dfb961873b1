"""A small Kubernetes API server with nodes, a job controller and a kubelet that runs containers as local processes.

What belongs here: what dagster-k8s and an administrator see of a cluster when runs and steps are Jobs. What does not:
any decision of ours, and everything a cluster has that nobody here asks for. What is not copied is refused with 501,
never passed over; `../CONFORMANCE.md` names the source of each behaviour.

It trusts its clients as far as Kubernetes trusts who may make Jobs: they choose what is run. So it listens at the
loopback address only and wants a token.
"""
