"""Optimisers on the kept numbers only: SGD, Adam and AdamW, operation by operation as torch's fused ones."""

from __future__ import annotations

import numpy as np

from tombola.engines.sparse.kernel import helper, kernel
from tombola.engines.sparse.memory import broadcast, fields, load, load_f64, store
from tombola.engines.sparse.parts import CORRECTION_1, CORRECTION_2, RATE, Call, Floats, call
from tombola.engines.sparse.vectors import convert_f32, fma, square_root
from tombola.recipe import Recipe

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

WIDTH = 32
"""Numbers that an update handles at a time; arrays are padded to whole multiples of it."""


@helper
def part(count, thread, threads):
    """The multiples of WIDTH of one thread, as byte offsets."""
    blocks = count // WIDTH
    return 4 * WIDTH * (blocks * thread // threads), 4 * WIDTH * (blocks * (thread + 1) // threads)


@helper
def number(address):
    """A float64 setting as the float32 that the arithmetic uses."""
    return convert_f32(load_f64(address))


@kernel
def sgd(args, frame, thread, threads):
    """SGD with L2 weight decay, momentum and Nesterov's variant (Sutskever et al. 2013, as in torch.optim.SGD)."""
    count, value, gradient, velocity, settings, nesterov = fields(args, 6)
    momentum, decay = number(settings), number(settings + 8)
    rate = number(frame + RATE)
    begin, end = part(count, thread, threads)
    for at in range(begin, end, 4 * WIDTH):
        w, g = load(value + at, WIDTH), load(gradient + at, WIDTH)
        if decay != np.float32(0):
            g = fma(decay, w, g)
        if momentum != np.float32(0):
            v = load(velocity + at, WIDTH) * momentum + g
            store(velocity + at, v)
            g = fma(momentum, v, g) if nesterov != 0 else v
        store(value + at, fma(-rate, g, w))


@kernel
def adam(args, frame, thread, threads):
    """Adam (Kingma & Ba 2015) with L2 decay, or AdamW (Loshchilov & Hutter 2019) with decoupled decay."""
    count, value, gradient, first, second, settings, decoupled = fields(args, 7)
    beta_1, beta_2, eps, decay = (
        load_f64(settings),
        load_f64(settings + 8),
        number(settings + 16),
        load_f64(settings + 24),
    )
    rate = load_f64(frame + RATE)
    step = convert_f32(-rate / load_f64(frame + CORRECTION_1))
    correction = broadcast(number(frame + CORRECTION_2), WIDTH)
    keep_1, keep_2 = convert_f32(1.0 - beta_1), convert_f32(beta_2)
    new_2 = convert_f32(1.0 - beta_2)
    shrink, decay_32 = convert_f32(1.0 - rate * decay), convert_f32(decay)
    begin, end = part(count, thread, threads)
    for at in range(begin, end, 4 * WIDTH):
        w, g = load(value + at, WIDTH), load(gradient + at, WIDTH)
        if decay != 0.0:
            if decoupled != 0:
                w = w * shrink
            else:
                g = fma(decay_32, w, g)
        m = load(first + at, WIDTH)
        # From the nearer of the two, so that a small gradient isn't lost beside a large moment that it replaces.
        m = fma(keep_1, g - m, m) if keep_1 < np.float32(0.5) else fma(keep_1 - np.float32(1), g - m, g)
        v = fma(new_2 * g, g, load(second + at, WIDTH) * keep_2)
        store(first + at, m)
        store(second + at, v)
        denominator = square_root(v) / correction + broadcast(eps, WIDTH)
        store(value + at, w + (step * m) / denominator)


class Optimizer:
    """The recipe's optimiser over one array of numbers and its gradients, both padded to whole multiples of WIDTH."""

    def __init__(self, recipe: Recipe, value: Floats, gradient: Floats, room: dict[str, Floats]) -> None:
        self.recipe, self.value, self.gradient, self.state = recipe, value, gradient, room
        if recipe.optimizer == "sgd":
            self._settings = np.array([recipe.momentum, recipe.weight_decay])
        else:
            self._settings = np.array([*recipe.betas, recipe.eps, recipe.weight_decay])

    @staticmethod
    def state_names(recipe: Recipe) -> tuple[str, ...]:
        """The names that torch's optimiser gives to what it keeps per number."""
        if recipe.optimizer == "sgd":
            return ("momentum_buffer",) if recipe.momentum else ()
        return ("exp_avg", "exp_avg_sq")

    def update(self) -> Call:
        """The call that moves the numbers by their gradients."""
        room = [self.state[name] for name in self.state_names(self.recipe)]
        if self.recipe.optimizer == "sgd":
            velocity = room[0] if room else 0
            return call(sgd, len(self.value), self.value, self.gradient, velocity, self._settings, self.recipe.nesterov)
        decoupled = self.recipe.optimizer == "adamw"
        return call(adam, len(self.value), self.value, self.gradient, *room, self._settings, decoupled)
