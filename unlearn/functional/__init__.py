"""Tensors in, tensors out: no modules, no configuration, no files.

``tokens`` (positions and likelihood of answers), ``divergence``, ``mmd``, ``distance`` (losses on activations), ``memorisation``,
``text`` (generated answers), ``statistics`` (intervals and two-sample tests).
"""
