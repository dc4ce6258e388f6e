"""What `gsopt bench` does: scenes of fixed size, timed training steps, and the machine measured beside them.

`scenes` makes what is trained, `machine` measures the machine, `measure` times steps, `model` says how much
they had to do at least; `studies`, `memory`, `variants` and `quality` are the tables that flags ask for;
`tables` and `report` are for people and for scripts.
"""
