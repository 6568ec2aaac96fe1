"""What tests/data/minhash.c expects: the bands that datasketch chooses, and a signature computed from the
description in runtime/data/minhash.h with Python's integers. Needs datasketch and scipy.

usage: minhash_reference.py"""
from datasketch.lsh import _optimal_param

M32, M64 = 2**32 - 1, 2**64 - 1
ROLL = 0x9E3779B97F4A7C15
TEXT = "The quick brown fox jumps over the lazy dog; the DOG sleeps on, and on_and_on, until 9."


def mix(x):
    x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & M64
    x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & M64
    return x ^ x >> 33


def word_hash(word):
    value = 0xCBF29CE484222325
    for character in word:
        value = (value ^ ord(character)) * 0x100000001B3 & M64
    return mix(value)


def permutations():
    state, pairs = 0x7464206D696E6861, []
    for _ in range(128):
        state = state + ROLL & M64
        x = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & M64
        x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
        x ^= x >> 31
        pairs.append((x & M32 | 1, x >> 32 | 1))
    return pairs


def signature(words):
    hashes = [word_hash(word) for word in words]
    shingles = [mix(sum(h * ROLL ** (4 - i) for i, h in enumerate(hashes[k:k + 5])) & M64)
                for k in range(len(hashes) - 4)]
    places = []
    for a, b in permutations():
        values = []
        for shingle in shingles:
            t = (shingle & M32) * a + (shingle >> 32) & M32
            values.append((t ^ t >> 15) * b & M32)
        places.append(min(values))
    return places


def main():
    for weights in ((0.5, 0.5), (0.1, 0.9)):
        for percent in range(50, 101, 5):
            bands, places = _optimal_param(percent / 100, 128, *weights)
            print(f"{{{percent / 100:.2f}, {weights[0]}, {weights[1]}, {bands}, {places}}},")
    words = "".join(c if c.isalnum() or c == "_" else " " for c in TEXT.lower()).split()
    places = signature(words)
    print(", ".join(f"0x{x:08x}" for x in places[:4] + places[-4:]))


main()
