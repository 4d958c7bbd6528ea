"""The Triton kernel of `harness.data.noise`, in a file of its own, since Triton reads its source. Needs Triton."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["k0", "k1", "begin", "skip", "count"])
def normals(out, k0, k1, begin, skip, count):  # type: ignore[no-untyped-def]  # Triton's own language
    """Numbers `8 * begin + skip` and on of the key (k0, k1): a lane makes one block of Philox4x64-10, 8 numbers."""
    lane = tl.program_id(0).to(tl.int64) * 128 + tl.arange(0, 128)
    c0 = (begin.to(tl.int64) + lane + 1).to(tl.uint64)  # numpy counts before it makes a block
    c1 = c0 * 0
    c2 = c1
    c3 = c1
    k0 = c1 + k0.to(tl.uint64)
    k1 = c1 + k1.to(tl.uint64)
    for _ in tl.static_range(10):  # Salmon et al. 2011, section 4.3
        high0 = tl.umulhi(c0, c1 * 0 + 0xD2E7470EE14C6C93)
        low0 = c0 * 0xD2E7470EE14C6C93
        high1 = tl.umulhi(c2, c1 * 0 + 0xCA5A826395121157)
        low1 = c2 * 0xCA5A826395121157
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += 0x9E3779B97F4A7C15
        k1 += 0xBB67AE8584CAA73B
    place = lane * 8 - skip
    _store(out, place, count, c0)
    _store(out, place + 2, count, c1)
    _store(out, place + 4, count, c2)
    _store(out, place + 6, count, c3)


@triton.jit
def _store(out, place, count, word):  # type: ignore[no-untyped-def]
    """Write the two numbers of a word (Box and Muller 1958) where they are wanted."""
    u = (word & 0xFFFFFFFF).to(tl.uint32).to(tl.float32)
    v = (word >> 32).to(tl.uint32).to(tl.float32)
    radius = tl.sqrt(-2.0 * tl.log((u + 0.5) * 2.3283064365386963e-10))
    angle = v * 1.4629180792671596e-09  # 2 pi / 2^32
    tl.store(out + place, radius * tl.cos(angle), mask=(place >= 0) & (place < count))
    tl.store(out + place + 1, radius * tl.sin(angle), mask=(place + 1 >= 0) & (place + 1 < count))
