"""The benchmark: training steps of standard workloads, on executors and on what one would use instead.

Each side is a process of its own (`own_side`, `torch_peer`), started from the same data and first weights (`exchange`).
`measure` lets them run in turns, `report` makes a table of it and `chart` a picture. On emulated hosts (`networks`) a
side is several processes (`hosts_sides`), which `hosts_measure` lets run in turns. Nothing but the command line imports
this package.
"""
