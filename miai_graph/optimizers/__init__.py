"""By what rules training changes parameters: Keras's optimizers, as nodes of the training step's own graph.

>>> optimizer = optimizers.Adam(1e-3)
>>> step = mg.function([x, y], [loss], optimizer.updates(mg.grad(loss, weights), weights))
>>> optimizer.learning_rate = 1e-4  # from the next step on
"""

from miai_graph.optimizers.adam import Adam
from miai_graph.optimizers.optimizer import Optimizer, registry
from miai_graph.optimizers.rmsprop import RMSprop
from miai_graph.optimizers.sgd import SGD

get = registry.get
serialize = registry.serialize

__all__ = ["Adam", "Optimizer", "RMSprop", "SGD", "get", "registry", "serialize"]
