"""SAC on the pre-trained Gaussian policy alone: what the operators of the diffusion policy are compared with."""

from typing import ClassVar

from sb3_exdm.finetuning.operators.base import register_operator
from sb3_exdm.finetuning.operators.select import Select
from sb3_exdm.policies.diffusion_policy import ActionSelection


@register_operator("sac")
class GaussianSAC(Select):
    """
    Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) on the pre-trained Gaussian, with the critics, the warm-up and
    the replay buffer of all operators. The diffusion policy takes part in the warm-up alone, and not even there with
    ``warm_up="gaussian"``.

    The parameters are those of :class:`~sb3_exdm.finetuning.operators.select.Select`.
    """

    action_selection: ClassVar[ActionSelection] = ActionSelection(actor=0, behavior=0, gaussian=1)
    exploring_actor: ClassVar[str] = "gaussian"
