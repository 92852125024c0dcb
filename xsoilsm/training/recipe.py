"""Step 5 of 7 (networks): the recipe of a training, every number that decides its result.

Source of the settings: Zhu et al. (2024), Remote Sensing of Environment 301, 113944, section 3.4;
of `Recipe.adaptation` Zhu et al. (2025), Journal of Hydrology 657, 133073. Switches beyond the
two are off unless they are asked for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

__all__ = ["Recipe"]

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "kind": ("coarse", "transfer", "benchmark", "adaptation"),
    "loss": ("rmse", "mape"),
    "distance": (None, "coral", "mmd"),
    "batch_norm": ("batch", "frozen", "target"),
    "balance": (None, "site"),
}


@dataclass(frozen=True)
class Recipe:
    """All settings of a training; make one with `coarse`, `transfer`, `benchmark`, `adaptation`.

    Parameters
    ----------
    kind : {"coarse", "transfer", "benchmark", "adaptation"}
        Coarse training and benchmark start from random parameters, the others from an ensemble.
    epochs : int
        Passes over the samples; there is no early stopping.
    learning_rate : float
        Of Adam, constant.
    batch : int, default 128
        Samples per step. The last batch of an epoch holds what is left.
    averaged_epochs : int, default 10
        The result is the mean of parameters and running statistics at the end of this many last
        epochs.
    betas, epsilon : (float, float), float
        Of Adam.
    loss : {"rmse", "mape"}
        Root mean square, or mean relative absolute difference.
    validation : float, default 0
        Share of the samples, drawn at random, that is held back and only measured. They come
        from the sites of the training samples: the figure does not say what to expect elsewhere.
    coarse_share : float, default 0
        9 km samples that are mixed in, per fine sample; 1 for sites without samples of their own.
    distance : {None, "coral", "mmd"}
        Distance between features of labelled and unlabelled samples that joins the loss.
    alpha : float, default 1
        Weight of the labelled fine samples; 1 - alpha is that of the coarse term, the same loss
        of as many 9 km samples in each batch.
    beta : float or "auto"
        Weight of the distance; "auto" makes it as large as the labelled term when training
        starts.
    batch_norm : {"batch", "frozen", "target"}
        Normalise by the batch; or by the running statistics of the base, which stay; or by the
        batch, with statistics estimated again on the unlabelled samples at the end.
    balance : {None, "site"}
        Draw samples so that every site has the same weight.
    correct_bias : bool, default False
        At the end shift each network by its mean error on the training samples.
    match_quantiles : bool, default False
        Map the labels onto the distribution of the coarse labels before training.
    seed : int, default 0
        Decides about everything random.

    Raises
    ------
    ValueError
        For values outside their range; the message says which.
    """

    kind: Literal["coarse", "transfer", "benchmark", "adaptation"]
    epochs: int
    learning_rate: float
    batch: int = 128
    averaged_epochs: int = 10
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    loss: Literal["rmse", "mape"] = "rmse"
    validation: float = 0.0
    coarse_share: float = 0.0
    distance: Literal["coral", "mmd"] | None = None
    alpha: float = 1.0
    beta: float | Literal["auto"] = "auto"
    batch_norm: Literal["batch", "frozen", "target"] = "batch"
    balance: Literal["site"] | None = None
    correct_bias: bool = False
    match_quantiles: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                msg = f"{name} is {getattr(self, name)!r}; expected one of {choices}"
                raise ValueError(msg)
        limits: dict[str, tuple[float, float]] = {
            "epochs": (1, 10**6),
            "averaged_epochs": (1, self.epochs),
            "batch": (2, 2**16),
            "learning_rate": (0, 1),
            "validation": (0, 0.9),
            "coarse_share": (0, 100),
            "alpha": (0, 1),
            "epsilon": (0, 1),
            "seed": (0, 2**63 - 1),
        }
        if self.beta != "auto":
            limits["beta"] = (0, 1e6)
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            whole = name in ("epochs", "averaged_epochs", "batch", "seed")
            if not isinstance(value, int if whole else int | float) or not low <= value <= high:
                kind = "a whole number" if whole else "a number"
                msg = f"{name} is {value!r}; expected {kind} from {low:g} to {high:g}"
                raise ValueError(msg)
        if self.batch_norm == "frozen" and not self.from_base:
            msg = "batch_norm is 'frozen', but a training from random parameters has no statistics"
            raise ValueError(msg)

    @classmethod
    def coarse(cls, **changes: Any) -> Self:
        """Training at 9 km: 100 epochs at 0.01, 10 % held back.

        Parameters
        ----------
        **changes
            Settings that are to be different.
        """
        return cls("coarse", 100, 0.01, validation=0.1)._with(changes)

    @classmethod
    def transfer(cls, **changes: Any) -> Self:
        """Fine-tuning of an ensemble: 1000 epochs at 1e-5, all samples train.

        Parameters
        ----------
        **changes
            Settings that are to be different.
        """
        return cls("transfer", 1000, 1e-5)._with(changes)

    @classmethod
    def benchmark(cls, **changes: Any) -> Self:
        """Training from random parameters on fine samples, with the settings at 9 km.

        The paper does not give its rate and length; at those of the transfer, random parameters
        would hardly move.

        Parameters
        ----------
        **changes
            Settings that are to be different.
        """
        return cls("benchmark", 100, 0.01)._with(changes)

    @classmethod
    def adaptation(cls, **changes: Any) -> Self:
        """Fine-tuning with unlabelled and coarse samples in the loss: 50 epochs at 5e-4.

        That fine and coarse term weigh the same (`alpha` 0.5) is a choice of this package.

        Parameters
        ----------
        **changes
            Settings that are to be different.
        """
        recipe = cls("adaptation", 50, 5e-4, loss="mape", distance="coral", alpha=0.5)
        return recipe._with(changes)

    def _with(self, changes: dict[str, Any]) -> Self:
        unknown = sorted(set(changes) - set(asdict(self)))
        if unknown:
            msg = f"a recipe has no {', '.join(unknown)}; expected of {', '.join(asdict(self))}"
            raise ValueError(msg)
        if "epochs" in changes and "averaged_epochs" not in changes:
            changes = changes | {"averaged_epochs": min(self.averaged_epochs, changes["epochs"])}
        return replace(self, **changes)

    @property
    def from_base(self) -> bool:
        """Whether training starts from an ensemble."""
        return self.kind in ("transfer", "adaptation")

    @property
    def needs_coarse(self) -> bool:
        """Whether 9 km samples are needed."""
        return self.coarse_share > 0 or self.match_quantiles or self._coarse_term

    @property
    def needs_target(self) -> bool:
        """Whether unlabelled samples are needed."""
        return self.distance is not None or self.batch_norm == "target"

    @property
    def _coarse_term(self) -> bool:
        return self.alpha < 1

    def settings(self) -> dict[str, str | int | float | bool]:
        """Return the recipe as a card's training record lists it.

        What is off or does not apply is left out.
        """
        content: dict[str, str | int | float | bool] = {
            "loss": self.loss.upper(),
            "optimiser": f"Adam ({self.betas[0]:g}, {self.betas[1]:g}, {self.epsilon:g})",
            "learning_rate": self.learning_rate,
            "batch": self.batch,
            "epochs": self.epochs,
            "averaged_epochs": self.averaged_epochs,
            "seed": self.seed,
        }
        if self.distance is not None:
            content |= {"distance": self.distance, "beta": self.beta}
        if self._coarse_term:
            content["alpha"] = self.alpha
        if self.validation:
            content["held_back"] = self.validation
        if self.coarse_share:
            content["coarse_share"] = self.coarse_share
        if self.batch_norm != "batch":
            content["batch_norm"] = self.batch_norm
        if self.balance is not None:
            content["balance"] = self.balance
        switches = {
            name: True for name in ("correct_bias", "match_quantiles") if getattr(self, name)
        }
        return content | switches
