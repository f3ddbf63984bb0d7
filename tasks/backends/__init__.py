"""What tells jit, neuronx and neuron apart; the front door is ``find_backend`` in ``registry``."""
