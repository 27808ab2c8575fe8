"""Writes a small llama-architecture GGUF with seeded random weights: a model that costs what one of its size costs.

It says nothing sensible. It exists so that a real server (tokeniser, chat template, KV cache, batching, sampling) can
be put under load where no trained weights can be had. Only the whole words of words.txt have output weights: under
llama-server's default top_k the model never samples end-of-text or half a UTF-8 character, so every answer runs to
max_tokens, one token an event. Needs `gguf` and numpy, which build.sh puts into .cache/venv.
"""

import argparse
import itertools
import string
from pathlib import Path

import gguf
import numpy as np

WORDS = Path(__file__).with_name("words.txt").read_text().split()

SPACE = "▁"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HEAD_SIZE = 64


def vocabulary() -> tuple[list[str], list[float], list[gguf.TokenType]]:
    """Tokens, scores and types of a byte-fallback SentencePiece vocabulary.

    llama.cpp joins the best-scored adjacent pair until none is in the vocabulary, so a word is one token only if each
    of its prefixes is a token too. Pieces that start a word score above letter pairs: a known word is never cut up,
    and an unknown one costs about half a token a letter.
    """
    special = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL, "</s>": gguf.TokenType.CONTROL}
    special |= dict.fromkeys(ROLES, gguf.TokenType.CONTROL)
    special |= {f"<0x{byte:02X}>": gguf.TokenType.BYTE for byte in range(256)}
    starts = sorted({SPACE + word[:length] for word in WORDS for length in range(len(word) + 1)})
    letters = [*string.ascii_letters, *map("".join, itertools.product(string.ascii_lowercase, repeat=2))]
    tokens = [*special, *starts, *letters]
    scores = [0.0] * len(special) + [-1.0] * len(starts) + [-2.0] * len(letters)
    types = [*special.values()] + [gguf.TokenType.NORMAL] * (len(starts) + len(letters))
    return tokens, scores, types


def write_model(path: Path, seed: int, layers: int, width: int, context: int) -> None:
    """Write the model to `path`; `width` is the embedding length, a multiple of 64."""
    tokens, scores, types = vocabulary()
    rng = np.random.default_rng(seed)
    hidden = width * 11 // 4  # llama's ratio, 8/3, made to fit blocks of 16

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(columns))

    whole_words = np.isin(tokens, [SPACE + word for word in WORDS])
    output = matrix(len(tokens), width) * np.float32(4.0) * whole_words[:, None]

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(width // HEAD_SIZE)
    writer.add_head_count_kv(width // HEAD_SIZE)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)

    norm = np.ones(width, dtype=np.float32)
    writer.add_tensor("token_embd.weight", matrix(len(tokens), width))
    writer.add_tensor("output_norm.weight", norm)
    writer.add_tensor("output.weight", output)
    for layer in range(layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", norm)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", norm)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(width, width))
        writer.add_tensor(f"blk.{layer}.ffn_gate.weight", matrix(hidden, width))
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", matrix(hidden, width))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", matrix(width, hidden))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a small llama GGUF with random weights.",
        epilog="example: .cache/venv/bin/python make_model.py .cache/tiny.gguf --layers 8",
    )
    parser.add_argument("path", type=Path, help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="more is slower (default %(default)s)")
    parser.add_argument("--width", type=int, default=512, help="embedding length (default %(default)s)")
    parser.add_argument("--context", type=int, default=4096, help="longest sequence, in tokens (default %(default)s)")
    args = parser.parse_args()
    if args.width < HEAD_SIZE or args.width % HEAD_SIZE:
        parser.error(f"--width is {args.width}; give a multiple of {HEAD_SIZE}.")
    # Written beside the target first: an interrupted run leaves no half model for serve.sh to find.
    part = args.path.with_suffix(".part")
    write_model(part, args.seed, args.layers, args.width, args.context)
    part.replace(args.path)
    print(f"wrote {args.path} ({args.path.stat().st_size / 1e6:.0f} MB, seed {args.seed})")


if __name__ == "__main__":
    main()
