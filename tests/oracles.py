"""The papers' closed loops in plain Python, one image at a time, to compare the environments with."""

import math

import numpy as np


def softmax(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def maskgit_decision(tokens, conditional, unconditional, mask_id, params, uniform, gumbel):
    """Returns the complete grid and the masked grid after one decision of MaskGIT as in AdaGen.

    Args:
        tokens: L token ids, `mask_id` where open.
        conditional: L rows of logits with the label.
        unconditional: L rows of logits without it.
        mask_id: id of the mask token.
        params: mask_ratio, mask_temperature, token_temperature, guidance_weight.
        uniform: L numbers that draw the tokens.
        gumbel: L numbers that disturb the confidence.
    """
    sampled, confidence = [], []
    for token, c, u, draw, noise in zip(tokens, conditional, unconditional, uniform, gumbel, strict=True):
        guided = [a + params["guidance_weight"] * (a - b) for a, b in zip(c, u, strict=True)]
        if token != mask_id:
            sampled.append(token)
            confidence.append(math.inf)
            continue
        cumulative, chosen = 0.0, 0
        for chosen, p in enumerate(softmax([x / params["token_temperature"] for x in guided])):  # noqa: B007
            cumulative += p
            if cumulative > draw:
                break
        sampled.append(chosen)
        confidence.append(math.log(softmax(guided)[chosen]) + params["mask_temperature"] * noise)
    num_masked = min(math.floor(params["mask_ratio"] * len(tokens)), len(tokens) - 1)
    cutoff = sorted(confidence)[num_masked]
    return sampled, [mask_id if s < cutoff else t for t, s in zip(sampled, confidence, strict=True)]


def var_token(conditional, unconditional, ratio, params, uniform, top_k_rule):
    """Returns the token of one place of a scale of VAR as in AdaGen: guidance, top-k, top-p, then the temperature.

    Args:
        conditional: V logits with the label.
        unconditional: V logits without it.
        ratio: number of the scale over that of the last one.
        params: guidance_weight, top_k, top_p, token_temperature.
        uniform: the number that draws the token.
        top_k_rule: "released" where a top-k below 1 keeps all tokens, "monotone" where it keeps one.
    """
    weight = params["guidance_weight"] * ratio
    logits = [(1 + weight) * c - weight * u for c, u in zip(conditional, unconditional, strict=True)]
    k = int(params["top_k"])
    if k < 1:
        k = len(logits) if top_k_rule == "released" else 1
    cutoff = sorted(logits, reverse=True)[min(k, len(logits)) - 1]
    logits = [x if x >= cutoff else -math.inf for x in logits]
    probability, below = softmax(logits), 0.0
    for v in sorted(range(len(logits)), key=logits.__getitem__)[:-1]:  # the likeliest one stays
        below += probability[v]
        if below <= 1 - params["top_p"]:
            logits[v] = -math.inf
    cumulative, chosen = 0.0, 0
    for chosen, p in enumerate(softmax([x / params["token_temperature"] for x in logits])):  # noqa: B007
        cumulative += p
        if cumulative > uniform:
            break
    return chosen


def smooth(actions, decay):
    """Returns the moving averages m_t = decay m_{t-1} + (1 - decay) a_t, m_0 = a_0, of a list of numbers."""
    averages = []
    for action in actions:
        averages.append(action if not averages else decay * averages[-1] + (1 - decay) * action)
    return averages


def released_schedule(settings):
    """Returns the hand-crafted schedule of one of AdaGen's configurations, {action: (rows,)}, in its own float32."""
    steps, f = settings["gen_steps"], np.float32
    index = np.arange(steps, dtype=f)

    def same(name, rows=steps):
        return np.full(rows, settings[name], dtype=f)

    if settings["model_family"] == "maskgit":
        ratio = (index + 1 - f(1e-3)) / f(steps)
        return {
            "manual_gen_ratios": np.cos(ratio * f(math.pi) * f(0.5)),
            "manual_temp": (1 - ratio) * f(settings["temp_init"]),
            "manual_samp_temp": same("manual_samp_temp_init"),
            "manual_cfg": (index + f(1e-3)) / f(steps) * f(settings["cfg_init"]),
        }
    if settings["model_family"] == "var":
        return {
            "cfg": same("cfg_init"),
            "top_k": same("topk"),
            "top_p": same("topp"),
            "manual_samp_temp": same("manual_samp_temp_init"),
        }
    first, last = (0.9, 0.01) if settings["model_family"] == "dit" else (0.01, 0.99)
    times = np.linspace(first, last, steps + 1, dtype=f)
    return {"timesteps": times, "manual_cfg": same("cfg_init", steps + 1)}


def released_actions(settings, outputs):
    """Returns the tables and the actions of one of AdaGen's policies in its own float32.

    Args:
        settings: of its configuration.
        outputs: (rows, N, K) of its network, in the order of `action_keys`.

    Returns:
        {action: (rows,)} before the activation and with the smoothing undone, {action: (rows, N)}.
    """
    f, decay, tables, actions = np.float32, np.float32(settings["action_smooth"]), {}, {}
    schedule = released_schedule(settings)
    for column, key in enumerate(settings["action_keys"]):
        scale = f(4096 if key == "top_k" else 1)
        bounded = key in ("manual_gen_ratios", "timesteps", "top_p", "top_k")
        y = schedule[key]
        if bounded:
            y = np.clip(y / scale, f(1e-6), f(1 - 1e-6))
            inverse = np.log(y / (1 - y))
        else:
            inverse = y + np.log(1 - np.exp(-y))
        rows = [inverse[0]]
        rows += [(inverse[t] - decay * inverse[t - 1]) / (1 - decay) for t in range(1, len(inverse))]
        tables[key], previous, played = np.array(rows, dtype=f), None, []
        for row, output in zip(rows, outputs, strict=True):
            moved = output[:, column] + row
            previous = moved if previous is None else decay * previous + (1 - decay) * moved
            played.append(scale / (1 + np.exp(-previous)) if bounded else np.log1p(np.exp(previous)))
        actions[key] = np.array(played, dtype=f)
    return tables, actions
