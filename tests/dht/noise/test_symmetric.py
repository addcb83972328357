import json
from pathlib import Path

import pytest

from hyperlog.dht.errors import BadSignature, LocalProtocolError, Truncated
from hyperlog.dht.noise.symmetric import MAX_MESSAGE, CipherState, SymmetricState, _hkdf

VECTORS = Path(__file__).parents[2] / "vectors"
PRIMITIVES = json.loads((VECTORS / "noise.json").read_text())["primitives"]


def test_hkdf_of_the_vector():
    assert [x.hex() for x in _hkdf(bytes([1]) * 64, bytes([2]) * 32)] == PRIMITIVES["hkdf"]["out"]


def test_cipher_without_a_key_passes_text_through():
    cipher = CipherState()
    assert cipher.encrypt_with_ad(b"ad", b"text") == b"text"
    assert cipher.decrypt_with_ad(b"ad", b"text") == b"text"


def test_a_forged_text_does_not_advance_the_counter():
    sender, receiver = CipherState(bytes(32)), CipherState(bytes(32))
    sealed = sender.encrypt_with_ad(b"ad", b"text")
    forged = bytes([sealed[0] ^ 1]) + sealed[1:]
    with pytest.raises(BadSignature):
        receiver.decrypt_with_ad(b"ad", forged)
    with pytest.raises(BadSignature):
        receiver.decrypt_with_ad(b"other", sealed)
    assert receiver.decrypt_with_ad(b"ad", sealed) == b"text"
    assert receiver.decrypt_with_ad(b"", sender.encrypt_with_ad(b"", b"next")) == b"next"


def test_ciphertext_shorter_than_its_tag_is_truncated():
    with pytest.raises(Truncated):
        CipherState(bytes(32)).decrypt_with_ad(b"", bytes(15))


def test_oversized_plaintext_is_refused():
    cipher = CipherState(bytes(32))
    assert len(cipher.encrypt_with_ad(b"", bytes(MAX_MESSAGE - 16))) == MAX_MESSAGE
    with pytest.raises(LocalProtocolError):
        cipher.encrypt_with_ad(b"", bytes(MAX_MESSAGE - 15))


def test_a_long_protocol_name_is_hashed():
    assert len(SymmetricState(b"x" * 65).handshake_hash) == 64
    assert SymmetricState(b"x" * 64).handshake_hash == b"x" * 64


def test_a_copy_goes_its_own_way():
    state = SymmetricState(b"name")
    state.mix_key(bytes(32))
    clone = state.copy()
    sealed = clone.encrypt_and_hash(b"payload")
    assert clone.handshake_hash != state.handshake_hash
    assert state.decrypt_and_hash(sealed) == b"payload"
    assert clone.handshake_hash == state.handshake_hash
    assert clone.split() == state.split()
