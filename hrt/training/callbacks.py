"""`DynamicCompression` in the callback interfaces of Lightning and DeepXDE, neither of which is a dependency."""

from importlib import import_module
from typing import Any

from hrt.errors import BackendError, InputError
from hrt.training.dynamic import DynamicCompression


def lightning_callback(dynamic: DynamicCompression, monitor: str = "loss") -> Any:
    """A Lightning `Callback` that calls `dynamic.step` at the end of every training epoch.

    Args:
        dynamic: takes the trainer's first optimizer where it has none of the trainer's.
        monitor: the name under which the module logs its training loss (`self.log(monitor, loss)`).

    Returns:
        The callback.

    Raises:
        BackendError: neither `lightning` nor `pytorch_lightning` is installed.
        InputError: during training, nothing is logged under that name.

    Example:
        trainer = lightning.Trainer(callbacks=[lightning_callback(DynamicCompression(net, x))])
    """
    base = _first("Lightning", "pip install lightning", ("lightning.pytorch", "pytorch_lightning")).Callback

    class Callback(base):  # type: ignore[misc, valid-type]
        """Calls `dynamic.step`."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            metrics = trainer.callback_metrics
            if monitor not in metrics:
                raise InputError(f"Nothing is logged as {monitor!r}. Found {sorted(metrics)}; log the training loss.")
            if not any(dynamic.optimizer is o for o in trainer.optimizers):
                dynamic.optimizer = next(iter(trainer.optimizers), None)
            dynamic.step(int(trainer.current_epoch), metrics[monitor])

    return Callback()


def deepxde_callback(dynamic: DynamicCompression) -> Any:
    """A DeepXDE `Callback` (PyTorch backend) that calls `dynamic.step` after every epoch.

    The loss is the sum of the training losses.

    Args:
        dynamic: takes the model's optimizer.

    Returns:
        The callback.

    Raises:
        BackendError: DeepXDE is not installed.

    Example:
        model.train(iterations=1000, callbacks=[deepxde_callback(DynamicCompression(model.net, x))])
    """
    base = _first("DeepXDE", "pip install deepxde", ("deepxde.callbacks",)).Callback

    class Callback(base):  # type: ignore[misc, valid-type]
        """Calls `dynamic.step`."""

        def on_epoch_end(self) -> None:
            state = self.model.train_state
            if state.loss_train is not None:
                dynamic.optimizer = getattr(self.model, "opt", None)  # another after every `compile`
                dynamic.step(int(state.epoch), float(sum(map(float, state.loss_train))))

    return Callback()


def _first(name: str, remedy: str, modules: tuple[str, ...]) -> Any:
    for module in modules:
        try:
            return import_module(module)
        except ImportError:
            continue
    raise BackendError(f"{name} is not installed. Expected one of {', '.join(modules)} ({remedy}).")
