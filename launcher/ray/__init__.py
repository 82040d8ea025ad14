"""The Ray back end: the same plan on the nodes of a Ray cluster.

::

    parctl (no ray) --REST--> job table of the cluster
                                  |
                              driver: one placement group, retries, verdict     on the head node
                                  |
                              agent (actor) --- node process --+-- fork server  on every node
                                                               +-- ranks

`backend`, `manifest`, `packages`, `jobs` and `record` run where `parctl` is typed; `driver`,
`placement`, `team`, `attempt` and `publish` in the driver; `agent` and `node` on the nodes.
"""
