"""A slow, plain second implementation of the method, to hold the package against.

Is        one token, one key, one head at a time; no code of the package, no Hugging Face forward, no cache.
Paper     UltraGist, arXiv 2405.16635; the windows, positions and masks are written down here once more, as loops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

GIST = -1


@dataclass
class Slot:
    """One place of a memory: its token (or GIST), its pre-RoPE keys and values, (kv_heads, head_dim) for each layer."""

    token: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


@dataclass
class Row:
    """One new row: its token (or GIST), its position, and the places (of past and rows together) that it sees."""

    token: int
    position: int
    sees: set[int]


class Reference:
    """A Llama-like model, read from its weights: projections, optional biases and head norms, half-split RoPE."""

    def __init__(self, model):
        config = model.config
        self.model, self.weights = model, dict(model.named_parameters())
        self.n_layers, self.n_heads, self.n_kv = (
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.eps, self.theta = config.rms_norm_eps, config.rope_parameters["rope_theta"]

    def norm(self, hidden, name):
        return hidden / torch.sqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps) * self.weights[name]

    def project(self, hidden, layer, letter, token):
        base = f"model.layers.{layer}.self_attn.{letter}_proj"
        gist = f"model.layers.{layer}.self_attn.ultragist_{letter}_proj"
        name = gist if token == GIST and f"{gist}.weight" in self.weights else base
        return torch.nn.functional.linear(hidden, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def rotate(self, heads, position):
        half = self.head_dim // 2
        angles = torch.tensor([position / self.theta ** (2 * i / self.head_dim) for i in range(half)])
        a, b = heads[..., :half], heads[..., half:]
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)

    def heads(self, hidden, layer, letter, token):
        heads = self.project(hidden, layer, letter, token).view(-1, self.head_dim)
        norm = f"model.layers.{layer}.self_attn.{letter}_norm.weight"
        return self.norm(heads, norm) if norm in self.weights else heads

    def attend(self, query, position, visible, layer):
        """Attend with all heads of one row; `visible` pairs slots with positions."""
        out = []
        for head in range(self.n_heads):
            kv = head // (self.n_heads // self.n_kv)
            turned = self.rotate(query[head], position)
            scores = torch.stack([turned @ self.rotate(s.keys[layer][kv], p) for s, p in visible])
            values = torch.stack([s.values[layer][kv] for s, _ in visible])
            out.append(torch.softmax(scores / math.sqrt(self.head_dim), 0) @ values)
        return torch.cat(out)

    def run(self, past, past_positions, rows):
        """Encode rows behind past slots: return new slots and the logits of each row."""
        embed = self.weights["model.embed_tokens.weight"]
        gist = self.weights.get("model.ultragist_embed_tokens.weight")
        hidden = [gist[0] if row.token == GIST else embed[row.token] for row in rows]
        slots = [Slot(row.token, [], []) for row in rows]
        places = [*zip(past, past_positions, strict=True), *((s, r.position) for s, r in zip(slots, rows, strict=True))]
        for layer in range(self.n_layers):
            prefix = f"model.layers.{layer}"
            normed = [self.norm(h, f"{prefix}.input_layernorm.weight") for h in hidden]
            for row, slot, h in zip(rows, slots, normed, strict=True):
                slot.keys.append(self.heads(h, layer, "k", row.token))
                slot.values.append(self.project(h, layer, "v", row.token).view(-1, self.head_dim))
            for i, row in enumerate(rows):
                query = self.heads(normed[i], layer, "q", row.token)
                seen = [places[j] for j in sorted(row.sees)]
                mixed = self.project(self.attend(query, row.position, seen, layer), layer, "o", row.token)
                hidden[i] = hidden[i] + mixed
                h = self.norm(hidden[i], f"{prefix}.post_attention_layernorm.weight")
                gate, up, down = (self.weights[f"{prefix}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
                hidden[i] = hidden[i] + down @ (torch.nn.functional.silu(gate @ h) * (up @ h))
        final = [self.norm(h, "model.norm.weight") for h in hidden]
        head = self.weights.get("lm_head.weight", embed)
        return slots, [head @ h for h in final]


def gist_rows(config, base, n_past, n_cached, n_raw, reach):
    """Rows of appended gists: positions and what they see. Places count past slots, then the new rows."""
    rows, n_new = [], n_raw - n_cached
    window = [base + i for i in range(n_raw)]  # cached tokens are the last past slots, new ones follow at once
    for j, upto in enumerate(reach, 1):
        own = n_past + n_new + j - 1
        sees = {*range(base), own}
        if config.attention == "full-coverage":
            sees |= {*window, *range(n_past + n_new, own)}
            position = base + n_raw + j - 1
        elif config.attention == "segmentation":
            sees |= set(window[(reach[j - 2] if j > 1 else 0) : upto])
            position = base + upto
        else:
            sees |= set(window[:upto])
            position = base + upto
            if config.attend_previous:
                sees |= set(range(n_past + n_new, own))
                position += j - 1
        rows.append(Row(GIST, position, sees))
    return rows


def compress(reference, config, ids, ratio, lead=None, chosen=()):
    """Condense one document on its own, with appended or interleaved gists, flushing the last window.

    Tokens whose number in the document is in `chosen` stay, in reading order, each before the gist that covers it.
    """
    memory, start, ids = [], 0, list(ids)
    n_lead = int(lead is not None)
    while start < len(ids):
        window = ids[start : start + config.window]
        full = len(window) == config.window
        n_covered = config.n_stride if full else len(window)
        n_past = len(memory)
        # The lead token is a row of every step: position 0, seen by all, seeing only itself.
        if config.placement == "append":
            reach = [min((j + 1) * ratio, n_covered) for j in range(-(-n_covered // ratio))]
            rows = [Row(t, n_past + i, {*range(n_past + i + 1)}) for i, t in enumerate(window)]
            rows += gist_rows(config, n_past, n_past, 0, len(window), reach)
        else:
            behind = {i for i in range(len(window)) if (i + 1) % ratio == 0 or i + 1 == len(window)}
            rows = interleaved(config, n_past, n_past, [], window, behind.__contains__)
        if lead is not None:
            rows = [
                Row(lead, 0, {n_past}),
                *(Row(r.token, r.position + 1, {n_past, *(j if j < n_past else j + 1 for j in r.sees)}) for r in rows),
            ]
        slots, _ = reference.run(memory, [i + n_lead for i in range(n_past)], rows)
        slots = slots[n_lead:]
        if config.placement == "append":  # each gist behind the tokens that it covers
            behind = {upto - 1: len(window) + j for j, upto in enumerate(reach)}
            slots = [s for i in range(n_covered) for s in (slots[i], *([slots[behind[i]]] if i in behind else []))]
        place = start - 1
        for slot in slots:
            place += slot.token != GIST
            if slot.token == GIST or place in chosen:
                memory.append(slot)
        start += config.n_stride if full else len(window)
    return memory


def interleaved(config, base, n_past, cached, tokens, gist_behind):
    """Rows of tokens with gists between them, behind the cached slots of the open window."""
    row_kinds, kinds = [], [slot.token == GIST for slot in cached]
    for i, token in enumerate(tokens):
        row_kinds += [token, GIST] if gist_behind(i) else [token]
    kinds += [kind == GIST for kind in row_kinds]
    rows = []
    for place in range(len(cached), len(kinds)):
        window = range(base, base + place + 1)
        if config.attention == "full-coverage":
            sees, position = {*range(base), *window}, base + place
        else:
            sees = {*range(base), *(j for j in window if not kinds[j - base]), base + place}
            position = base + sum(not kind for kind in kinds[:place])
        rows.append(Row(row_kinds[place - len(cached)], position, sees))
    return rows


class Stream:
    """The authors' stream: state of one sequence that grows call by call."""

    def __init__(self, reference, config, training=False):
        self.reference, self.config, self.training = reference, config, training
        self.sink, self.gists, self.raw = [], [], []
        self.ids, self.start, self.end, self.phase, self.ratio, self.n_ratios = [], 0, 0, 0, None, 0
        self.closed_one = False

    def next_ratio(self):
        ratios = self.config.choices
        if len(ratios) == 1:
            return ratios[0]
        assert self.config.ratio_policy == "sequence"
        usable = [r for r in ratios if r == 0 or self.config.n_stride % r == 0]
        self.n_ratios += 1
        return usable[(self.n_ratios - 1) % len(usable)]

    def feed(self, tokens):
        """Take more tokens; return their logits."""
        self.ids += list(tokens)
        logits = []
        while self.end < len(self.ids):
            logits += self.step()
        return torch.stack(logits)

    def step(self):
        config = self.config
        stop = min(self.start + config.window, len(self.ids))
        last = self.training and stop == len(self.ids)
        full = stop == self.start + config.window and not last
        past = [*self.sink, *self.gists, *self.raw]
        base, new = len(self.sink) + len(self.gists), self.ids[self.end : stop]
        if config.placement == "append":
            slots, logits = self.append_step(past, base, new, full)
        else:
            slots, logits = self.interleave_step(past, base, new, full, last)
        if full:
            self.start += config.n_stride
        self.end = stop
        return [value for slot, value in zip(slots, logits, strict=True) if slot.token != GIST]

    def append_step(self, past, base, new, full):
        config, n_cached = self.config, len(self.raw)
        rows = [Row(t, len(past) + i, {*range(len(past) + i + 1)}) for i, t in enumerate(new)]
        ratio, k, n_raw = None, 0, n_cached + len(new)
        if full:
            ratio = self.next_ratio()
            k = config.n_stride // ratio if ratio else 0
            length = (config.n_stride // k if config.even_spread else ratio) if k else 0
            rows += gist_rows(config, base, len(past), n_cached, n_raw, [j * length for j in range(1, k + 1)])
        slots, logits = self.reference.run(past, range(len(past)), rows)
        window = [*self.raw, *slots[: len(new)]]
        self.raw = window
        if full:
            self.take_sink(window)
            self.gists += slots[len(new) :] if k else window[: config.n_stride]
            self.raw = window[config.n_stride :]
        return slots, logits

    def interleave_step(self, past, base, new, full, last):
        if not last and self.end == self.start:
            self.ratio = self.next_ratio()

        def gist_behind(_):
            if last:
                return False
            self.phase = (self.phase + 1) % self.ratio
            return self.phase == 0

        rows = interleaved(self.config, base, len(past), self.raw, new, gist_behind)
        positions, raw = list(range(base)), 0
        for i, slot in enumerate(self.raw):
            positions.append(base + (i if self.config.attention == "full-coverage" else raw))
            raw += slot.token != GIST
        slots, logits = self.reference.run(past, positions, rows)
        self.raw = [*self.raw, *slots]
        if full:
            self.take_sink(self.raw)
            self.gists += [slot for slot in self.raw if slot.token == GIST]
            self.raw = []
        return slots, logits

    def take_sink(self, window):
        if not self.closed_one:
            self.sink, self.closed_one = window[: self.config.sink], True

    @property
    def memory(self):
        """Slots in order: sink, gists, raw."""
        return [*self.sink, *self.gists, *self.raw]


def stack(slots, layer, what):
    """Stack keys or values of slots into (1, kv_heads, slots, head_dim)."""
    return torch.stack([getattr(slot, what)[layer] for slot in slots], 1)[None]


def loss(logits, labels, n_skipped=0):
    """Mean cross entropy of shifted labels, without the first `n_skipped` predictions."""
    terms = [
        -torch.log_softmax(logits[i], -1)[labels[i + 1]]
        for i in range(n_skipped, len(labels) - 1)
        if labels[i + 1] != -100
    ]
    return torch.stack(terms).mean()
