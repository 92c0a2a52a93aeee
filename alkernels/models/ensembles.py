from torch import nn

from alkernels.models.posterior import Posterior


class Ensemble(nn.Module, Posterior):
    pass
