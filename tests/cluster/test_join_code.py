"""`cluster.join_code`: codes read back, typing mistakes are found, and no role's code gives another role's keys."""

from __future__ import annotations

from base64 import b32decode
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.join_code import MAX_CLUSTER_NAME, JoinCode, JoinCodeError, new_join_code, parse_join_code
from cluster.roles import Role

names = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True).filter(lambda name: len(name) <= MAX_CLUSTER_NAME)
GOLDEN = ("ce08bf8f4ea20626", "cc66f9396ef100ee", "3b398f9618fedd77", "dd9b5d84ca8b33d0")
GOLDEN_TEXT = "home-CAAACAQD-AQCQMBYI-BEFAWDAN-BYHRAEIS-CMKBKFQX-DAMRUGY4-DUPB7KL6"

codes = st.builds(JoinCode, names, st.sampled_from(Role), st.binary(min_size=32, max_size=32))


@given(codes)
def test_code_reads_back(code: JoinCode) -> None:
    assert parse_join_code(code.text()) == code


@given(codes, st.data())
def test_code_reads_back_in_any_spacing_and_case(code: JoinCode, data: st.DataObject) -> None:
    name, letters = code.text()[: len(code.name)], code.text()[len(code.name) + 1 :].replace("-", "")
    typed = [data.draw(st.sampled_from((c.lower(), c, f"{c} ", f"{c}\n"))) for c in letters]
    digits = str.maketrans("OIBoib", "018018")
    looked_like = "".join(c.translate(digits) if data.draw(st.booleans()) else c for c in typed)
    assert parse_join_code(f"  {name.upper()}-{looked_like} ") == code


@given(codes, st.integers(0, 55), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_one_wrong_letter_is_a_typing_mistake(code: JoinCode, at: int, letter: str) -> None:
    name, letters = code.name, code.text()[len(code.name) + 1 :].replace("-", "")
    if letters[at] == letter:
        return
    mistyped = f"{name}-{letters[:at]}{letter}{letters[at + 1 :]}"
    body = b32decode(mistyped[len(name) + 1 :])
    if sha256(name.encode() + b"\0" + body[:-2]).digest()[:2] == body[-2:]:
        return  # one in 65,536 passes, and then no key fits
    with pytest.raises(JoinCodeError, match="copy the whole line again"):
        parse_join_code(mistyped)


@given(st.text(max_size=200).filter(lambda text: text.strip() != GOLDEN_TEXT))
def test_other_text_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(JoinCodeError, match="join code"):
        parse_join_code(text)


def test_checksum_covers_the_cluster_name() -> None:
    code = new_join_code("home")
    with pytest.raises(JoinCodeError, match="typing mistake"):
        parse_join_code("office" + code.text()[4:])


@pytest.mark.parametrize("name", ["", "Home", "my cluster", "-home", "a--b", "x" * 33, "häuschen"])
def test_invalid_cluster_name_is_refused(name: str) -> None:
    with pytest.raises(JoinCodeError, match="is not a cluster name"):
        new_join_code(name)


def test_all_roles_share_the_join_and_beacon_keys() -> None:
    keys = [new.keys() for new in map(new_join_code("home").invite, Role)]
    keys += [parse_join_code(code.text()).keys() for code in map(new_join_code("home").invite, Role)]
    for first, second, third in (keys[:3], keys[3:]):
        assert (first.id, first.join_secret, first.beacon) == (second.id, second.join_secret, second.beacon)
        assert (first.id, first.join_secret, first.beacon) == (third.id, third.join_secret, third.beacon)
    assert keys[0].id != keys[3].id


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OBSERVER])
def test_invited_role_has_only_its_own_join_key(role: Role) -> None:
    home = new_join_code("home")
    invited = parse_join_code(home.invite(role).text()).keys()
    assert invited.join == {role: home.keys().join[role]}
    assert len(set(home.keys().join.values())) == len(Role)


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OBSERVER])
def test_only_a_member_code_can_invite(role: Role) -> None:
    with pytest.raises(JoinCodeError, match="cannot invite"):
        new_join_code("home").invite(role).invite(Role.MEMBER)


def test_derived_keys_never_change() -> None:
    """Golden values: a change would make every join code in use worthless."""
    keys = JoinCode("home", Role.MEMBER, bytes(range(32))).keys()
    assert (keys.id, keys.beacon[:8].hex(), keys.join_secret[:8].hex(), keys.join[Role.OBSERVER][:8].hex()) == GOLDEN
    assert JoinCode("home", Role.MEMBER, bytes(range(32))).text() == GOLDEN_TEXT


def test_repr_shows_no_secret() -> None:
    code = new_join_code("home")
    shown = repr(code) + repr(code.keys()) + repr({"code": code})
    assert code.secret.hex() not in shown
    assert str(code.secret) not in shown
    assert code.text() not in shown
