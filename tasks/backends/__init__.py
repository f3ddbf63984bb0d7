"""What differs between jit, neuronx and neuron: one module each behind one protocol."""
