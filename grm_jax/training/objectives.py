"""Says what the stages minimize, from their settings."""

from grm_jax.losses import LossConfig, policy_loss
from grm_jax.models.config import ModelConfig
from grm_jax.training.settings import RlConfig
from grm_jax.training.step import LossFn, rl_loss


def rl_objective(
    rl: RlConfig, model_cfg: ModelConfig, max_length: int
) -> tuple[LossFn, LossConfig]:
    """Makes the loss of the RL step, and the settings that it shares with KL penalty and mask.

    max_length: tokens of the longest completion.
    """
    loss_cfg = rl.loss_config(max_length)
    loss = policy_loss(rl.loss, rl.loss_args)
    return rl_loss(model_cfg, loss, loss_cfg, rl.temperature, max_length), loss_cfg
