"""Tells what a jitted program costs on chips that are not there, before it is launched.

From its jaxpr and its ahead-of-time compile:

    flops.py        FLOPs of a jaxpr, loops as often as they run
    hlo.py          compiled HLO text as data: computations, instructions, how often each runs
    collectives.py  bytes that each kind of collective moves over each mesh axis
    traffic.py      bytes read from and written to HBM
    topology.py     devices of a TPU slice that this host does not have
    measure.py      compile one program and take its figures
    roofline.py     times from figures and a chip
    report.py       tables
"""
