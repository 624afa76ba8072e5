"""Tests of `lines_of_keys`: the line of each key of a TOML document."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from micro_core.config.toml_lines import lines_of_keys

TRICKY = '''# site = "comment"
[node] # a comment after a table
site = "eu # not a comment"
name = """
site = "in a string of several lines"
[plugins.in_a_string]
"""  # its end
plugins = [
  "a]", # ] in a string, ] in a comment
  "b = [",
]
[plugins."registry:redis"]
"a key" = 1
a.b = '[' # quoted bracket
[ plugins . quic ]
port = { deep = [
  1 ] }
quotes = """"ends with three more quotes""""
literal = \'\'\'\'ends \\\'\'\'\'
after = 1
[[plugins.list]]
x = 1
[[plugins.list]]
x = 2
'''


def test_line_of_each_key_is_found() -> None:
    tomllib.loads(TRICKY)
    assert lines_of_keys(TRICKY) == {
        ("node",): 2,
        ("node", "site"): 3,
        ("node", "name"): 4,
        ("node", "plugins"): 8,
        ("plugins", "registry:redis"): 12,
        ("plugins", "registry:redis", "a key"): 13,
        ("plugins", "registry:redis", "a", "b"): 14,
        ("plugins", "quic"): 15,
        ("plugins", "quic", "port"): 16,
        ("plugins", "quic", "quotes"): 18,
        ("plugins", "quic", "literal"): 19,
        ("plugins", "quic", "after"): 20,
        ("plugins", "list"): 21,
        ("plugins", "list", "x"): 22,
    }


def test_only_line_ends_of_toml_are_counted() -> None:
    text = "[node]\r\nname = 'a\u2028b'\r\nsite = 'eu'\r\n"
    tomllib.loads(text)
    assert lines_of_keys(text)["node", "site"] == 3


@given(st.text(alphabet="[]{}\"'=#.\\ab1 \n", max_size=200))
def test_arbitrary_text_does_not_raise(text: str) -> None:
    lines = lines_of_keys(text)
    assert all(1 <= number <= text.count("\n") + 1 for number in lines.values())


values = st.one_of(
    st.integers(-9, 9).map(str),
    st.lists(st.sampled_from(['"]"', "'#'", "1"]), max_size=3).map(lambda items: f"[ # [\n{', '.join(items)}\n]"),
    st.text(alphabet="a#=[]'\n", max_size=8).map(lambda text: f'"""{text}"""'),
)


@given(st.lists(values, min_size=1, max_size=8))
def test_keys_are_found_between_arbitrary_values(raws: list[str]) -> None:
    text = "[node]\n" + "".join(f"key{number} = {raw} # end\n" for number, raw in enumerate(raws))
    parsed = tomllib.loads(text)
    written = text.split("\n")
    found = lines_of_keys(text)
    assert set(found) == {("node",), *(("node", key) for key in parsed["node"])}
    for key in parsed["node"]:
        assert written[found["node", key] - 1].startswith(f"{key} = ")
