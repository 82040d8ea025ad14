"""Malformed recipes: name, bytes, and where each problem stands (line, column, path).

`GOOD` is what most of them spoil in one place.
"""

from dataclasses import dataclass

GOOD = """\
version: 1
name: mine
model: tiny-llama
parallelism: TP2+SP+FSDP2
train:
  seq_len: 128
  global_batch: 32
  steps: 10
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    name: str
    text: bytes
    problems: tuple[tuple[int, int, str], ...]  # line, column, path
    says: str  # part of the first message
    hint: str  # part of the first hint


def case(
    name: str, text: str | bytes, problems: list[tuple[int, int, str]], says: str, hint: str
) -> Malformed:
    data = text.encode() if isinstance(text, str) else text
    return Malformed(name=name, text=data, problems=tuple(problems), says=says, hint=hint)


def spoilt(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


BOMB = "- &a [x, x]\n- &b [*a, *a]\n- &c [*b, *b]\n"

MALFORMED = (
    # types
    case("text-for-number", spoilt("steps: 10", "steps: ten"),
         [(8, 10, "train.steps")], 'found "ten", expected a whole number', "steps: 1000"),
    case("quoted-number", spoilt("steps: 10", 'steps: "10"'),
         [(8, 10, "train.steps")], 'found "10", expected a whole number', "steps: 1000"),
    case("fraction-for-count", spoilt("steps: 10", "steps: 10.5"),
         [(8, 10, "train.steps")], "found 10.5, expected a whole number", "steps: 1000"),
    case("true-for-number", spoilt("steps: 10", "steps: true"),
         [(8, 10, "train.steps")], "found true, expected a whole number", "steps: 1000"),
    case("yes-for-true", GOOD + "checkpoint: {resume: yes}\n",
         [(9, 22, "checkpoint.resume")], 'found "yes", expected true or false', "resume: true"),
    case("list-for-mapping", spoilt("train:\n  seq_len: 128\n  global_batch: 32\n  steps: 10\n",
                                    "train: [1, 2]\n"),
         [(5, 8, "train")], "found a list, expected keys with values", "steps"),
    case("mapping-for-text", spoilt("name: mine", "name: {a: b}"),
         [(2, 1, "name")], "found keys with values, expected text", "llama-70b"),
    case("command-as-text", "version: 1\ntask: script\nscript: {command: python train.py}\n",
         [(3, 19, "script.command")], "expected a list", "[python, train.py]"),
    case("whole-file-is-a-list", "- version: 1\n- model: tiny-llama\n",
         [(1, 1, "")], "expected keys with values", "version: 1"),
    case("whole-file-is-text", "tiny-llama\n",
         [(1, 1, "")], 'found "tiny-llama"', "tiny-llama: TP+SP+FSDP"),
    # keys
    case("unknown-key", spoilt("seq_len", "seq_length"),
         [(6, 3, "train.seq_length")], "unknown key", "did you mean `seq_len`?"),
    case("unknown-top-key", spoilt("parallelism:", "paralelism:"),
         [(1, 1, "parallelism"), (4, 1, "paralelism")], "missing", "parallelism: TP+SP+FSDP"),
    case("duplicate-key", GOOD + "name: other\n",
         [(9, 1, "")], "key `name` is given twice, first in line 2", "keep one"),
    case("list-as-key", GOOD + "? [a, b]\n: c\n",
         [(9, 3, "")], "list or mapping as a key", "quote"),
    case("no-version", spoilt("version: 1\n", ""),
         [(1, 1, "version")], "missing", "add `version: 1`"),
    case("version-2", spoilt("version: 1", "version: 2"),
         [(1, 10, "version")], "found 2, expected one of 1", "version: 1"),
    case("no-model", spoilt("model: tiny-llama\n", ""),
         [(1, 1, "model")], "missing, and task train needs it", "model: llama-3-70b"),
    case("script-key-in-training", GOOD + "script: {command: [ls]}\n",
         [(9, 1, "script")], "has no meaning for task train", "task: script"),
    case("both-names-of-recompute",
         GOOD + "  recompute: full\n  activation_checkpointing: full\n",
         [(10, 3, "train.activation_checkpointing")], "two names of one field", "keep one"),
    # numbers
    case("zero", spoilt("steps: 10", "steps: 0"),
         [(8, 10, "train.steps")], "found 0, expected at least 1", "steps: 1000"),
    case("negative", spoilt("seq_len: 128", "seq_len: -128"),
         [(6, 12, "train.seq_len")], "found -128, expected at least 1", "seq_len: 8192"),
    case("huge", spoilt("steps: 10", "steps: 99999999999999999999"),
         [(8, 10, "train.steps")], "expected at most 1,000,000,000", "steps: 1000"),
    case("5000-digits", spoilt("steps: 10", "steps: 1" + "0" * 4999),
         [(8, 10, "")], "found a number of 5000 digits", "quote"),
    case("infinite", GOOD + "  optimizer: {lr: .inf}\n",
         [(9, 19, "train.optimizer.lr")], "expected a finite number", "lr: 0.0003"),
    # shorthand
    case("unknown-term", spoilt("TP2+SP+FSDP2", "TP2+SP+FSPD2"),
         [(4, 21, "parallelism")], "found `FSPD2`, expected a term", "did you mean `FSDP`?"),
    case("sp-without-tp", spoilt("TP2+SP+FSDP2", "SP+FSDP2"),
         [(4, 14, "parallelism.sp")], "SP without TP", "CPn@ring"),
    case("axis-twice", spoilt("TP2+SP+FSDP2", "TP2+DP2+DDP4"),
         [(4, 22, "parallelism")], "`DDP4` gives dp a second time", "name each axis once"),
    case("zero-degree", spoilt("TP2+SP+FSDP2", "TP0+FSDP2"),
         [(4, 16, "parallelism")], "found degree 0 of TP, expected 1 to 1,048,576", "inferred"),
    case("huge-degree", spoilt("TP2+SP+FSDP2", "TP2+FSDP99999999999"),
         [(4, 22, "parallelism")], "found degree 99999999999 of FSDP", "inferred"),
    case("empty-term", spoilt("TP2+SP+FSDP2", "TP2++FSDP2"),
         [(4, 18, "parallelism")], "found nothing, expected a term", "TP8+SP+FSDP"),
    case("bad-schedule", spoilt("TP2+SP+FSDP2", "PP2@1f2b"),
         [(4, 18, "parallelism")], "found schedule `1f2b`", "PP2@1f1b"),
    case("number-for-form", spoilt("TP2+SP+FSDP2", "8"),
         [(4, 14, "parallelism")], "found 8, expected keys with values", "TP+SP+FSDP"),
    case("bad-line", "LLaMA-70B: TP8+XY\n",
         [(1, 16, "parallelism")], "found `XY`", "terms are"),
    case("line-of-unknown-model", "llama-80b: TP8\n",
         [(1, 1, "model")], "no model is called `llama-80b`", "did you mean `llama-"),
    # across objects
    case("tp-does-not-divide-heads", spoilt("TP2", "TP3"),
         [(4, 14, "parallelism.tp"), (6, 12, "train.seq_len")],
         "num_heads (8) / tp (3) is not a whole number", "2 or 4"),
    case("batch-does-not-divide", spoilt("global_batch: 32", "global_batch: 33"),
         [(7, 17, "train.global_batch")],
         "global_batch (33) / (micro_batch (1) x dp (1) x fsdp (2))", "for example 32"),
    case("ep-without-experts", spoilt("TP2+SP+FSDP2", "DP2+EP2"),
         [(4, 18, "parallelism.ep")], "EP splits experts, but tiny-llama has none", "remove EP"),
    case("more-stages-than-layers", spoilt("TP2+SP+FSDP2", "PP8"),
         [(4, 14, "parallelism.pp")], "pp (8) = 8 stages, but the model has 4 layers", "at most 4"),
    # YAML and bytes
    case("tab", spoilt("  steps: 10", "\tsteps: 10"),
         [(8, 1, "")], "found a tab", "indent with spaces"),
    case("bad-indent", spoilt("  steps: 10", " steps: 10"),
         [(8, 2, "")], "not YAML", "indentation"),
    case("open-bracket", GOOD + "data: {train: [a, b\n",
         [(10, 1, "")], "not YAML", "bracket"),
    case("anchor-and-alias", spoilt("name: mine", "name: &n mine") + "launch: {queue: *n}\n",
         [(2, 7, ""), (9, 17, "")], "found the anchor `&n`", "no anchors"),
    case("bomb", BOMB,
         [(1, 1, ""), (1, 3, ""), (2, 3, ""), (2, 7, ""), (2, 11, ""), (3, 3, ""), (3, 7, ""),
          (3, 11, "")],
         "expected keys with values", "version: 1"),
    case("deep", "a: " + "[" * 5000 + "\n",
         [(1, 23, "")], "nested deeper than 20 levels", "three"),
    case("wide", "a: [" + "x," * 30000 + "]\n",
         [(1, 39999, "")], "more than 20,000 values", "right file"),
    case("tag", spoilt("name: mine", "name: !!python/object/apply:os.system [ls]"),
         [(2, 7, ""), (2, 7, "name")], "found the tag", "no tags"),
    case("two-documents", GOOD + "---\nversion: 1\n",
         [(9, 1, "")], "second document", "file of its own"),
    case("empty", "", [(1, 1, "")], "found nothing, expected a recipe", "parctl recipes init"),
    case("only-comments", "# nothing\n", [(1, 1, "")], "found nothing", "parctl recipes init"),
    case("latin-1", GOOD.encode() + "# caf\u00e9\n".encode("latin-1"),
         [(9, 6, "")], "found byte 0xe9, expected UTF-8 text", "save the file as UTF-8"),
    case("utf-16", GOOD.encode("utf-16"),
         [(1, 1, "")], "found UTF-16 text", "save the file as UTF-8"),
    case("binary", b"\x7fELF\x02\x01\x01\x00\x00", [(1, 1, "")], "control character", "binary"),
    case("too-big", b"# " + b"x" * (1 << 20), [(1, 1, "")], "a recipe at most 1,048,576",
         "right file"),
    # secrets and variables
    case("secret-with-two-sources",
         GOOD + "launch:\n  secrets:\n    T: {from_env: A, secret: b, key: c}\n",
         [(11, 5, "launch.secrets.T")], "exactly one of `from_env` and `secret`", "from_env"),
    case("bad-variable-name", GOOD + "launch: {env: {1BAD: x}}\n",
         [(9, 16, "launch.env.1BAD")], "expected a name of letters", "HF_TOKEN"),
)  # fmt: skip
