"""How byte-level vocabularies split a text before they merge its bytes. Knows no file and no vocabulary.

A GGUF file names the rule in `tokenizer.ggml.pre`. The names are llama.cpp's (`src/llama-vocab.cpp`), and the patterns
those of each model's own tokenizer.json. With another rule a text gets other ids than in the training, and nothing
else shows it; so a name that is not here must be refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex, pre_tokenizers


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Patterns that split a text one after another; each match is a piece, and so is what lies between two of them.

    With `whole_words` a piece that is a token of the vocabulary is not merged from its bytes.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Make the splitter, which writes each piece in the byte alphabet."""
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_DIGIT = r"\p{N}"
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


def _words(digits: str, spaces: str = _SPACES, signs: str = _SIGNS, letters: str = r"\p{L}") -> str:
    """Make the pattern of GPT-4's vocabulary, from which many others are derived."""
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}|{signs}|{spaces}"


def _cased_words(digits: str, suffix: str) -> str:
    """Make the pattern of vocabularies that split words where a capital letter follows a small one."""
    capitals, smalls = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = rf"[^\r\n\p{{L}}\p{{N}}]?{capitals}*{smalls}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{capitals}+{smalls}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


# The letters with a case as of the Unicode version that DeepSeek's first tokenizer was made with.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_DEEPSEEK_SIGNS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    rf"{_SPACES}"
)
_MARKED_LETTERS, _UNMARKED_SIGNS = r"[\p{L}\p{M}]", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
_PHRASES = r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)"  # words, and single spaces between them
_DIGITS_FROM_THE_RIGHT = r"\d{1,3}(?=(?:\d{3})*\b)"
_DECREASING_SPACES = "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))

_RULES = {
    "gpt-2 phi-2 olmo mpt jais trillion gigachat a.x-4.0 mellum exaone4 granite-docling": SplitRule((_GPT_2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": SplitRule((_DIGIT, _GPT_2)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": SplitRule((_words(r"\p{N}{1,3}"),), True),
    "dbrx smaug-bpe glm4 chatglm-bpe": SplitRule((_words(r"\p{N}{1,3}"),)),
    "qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan solar-open grok-2": SplitRule((_words(_DIGIT),)),
    "qwen35": SplitRule((_words(_DIGIT, letters=_MARKED_LETTERS, signs=_UNMARKED_SIGNS),)),
    "ufakzeka": SplitRule((_words(_DIGIT).removeprefix(f"{_CONTRACTIONS}|"),)),
    "bailingmoe bailingmoe2 llada-moe": SplitRule((_words(_DIGIT, r"\s*[\r\n]|\s+(?!\S)|\s+"),)),
    "exaone-moe": SplitRule(
        (_words(_DIGIT, r"\s*[\r\n]|\s+(?!\S)|\s+", r" ?[^\s\p{L}\p{N}]+[\r\n/]?", letters=_PHRASES),)
    ),
    "seed-coder": SplitRule((_words(_DIGIT, signs=r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    "minicpm5": SplitRule((r"\p{N}{1,3}", _words(r"\p{N}+")), True),
    "jais-2": SplitRule((_words(r"\p{N}{1,3}", rf"\s*[\r\n]+|{_DECREASING_SPACES}|\s"),)),
    "tekken": SplitRule((_cased_words(_DIGIT, ""),), True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": SplitRule((_cased_words(r"\p{N}{1,3}", f"{_CONTRACTIONS}?"),)),
    "deepseek-llm": SplitRule(
        (r"[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", _DEEPSEEK_SIGNS, r"\s+$", _EAST_ASIAN, r"\p{N}+")
    ),
    "deepseek-coder": SplitRule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, _DIGIT)),
    "tiny_aya cohere2moe": SplitRule(
        (_DIGITS_FROM_THE_RIGHT, _cased_words(r"\p{N}{1,3}", f"{_CONTRACTIONS}?")),
    ),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": SplitRule((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_3)),
    "falcon": SplitRule((r"[\p{P}$+<=>^~|`]+", _GPT_2, r"[0-9]{3}")),
    "poro-chat bloom gpt3-finnish": SplitRule((_BLOOM,)),
    "viking": SplitRule((_BLOOM, _DIGIT)),
}

SPLIT_RULES: Mapping[str, SplitRule] = MappingProxyType(
    {name: rule for names, rule in _RULES.items() for name in names.split()}
)
"""The rule of each name."""
