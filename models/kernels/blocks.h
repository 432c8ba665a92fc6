/* What every kernel shares: layouts, 16-bit products of blocks, vector arithmetic, threads.
 *
 * Layouts. Everything is cut into blocks of 32 x 32 numbers, a step being 32 numbers along the summed dimension:
 *   panel   32 rows of activations: one block a step, each 32 rows of 32 numbers (2 KB)
 *   strip   32 columns of weights: one block a step, each two tiles (columns 0..15 and 16..31) of 16 rows; row i of a
 *           tile holds numbers 2i and 2i + 1 of each of its 16 columns side by side, as the dot products want them
 *   square  32 x 32 float32 results: four tiles of 16 x 16, row after row (4 KB)
 * A dimension that is no multiple of 32 is filled up with zeros.
 *
 * One source, two builds: with USE_TILES products run on AMX tiles, without on AVX512-BF16 registers.
 */
#pragma once

#include <immintrin.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

enum { SIDE = 32, BLOCK = SIDE * SIDE, TILE = 256, LINE = 64 };

#define INLINE static inline __attribute__((always_inline))

/* ---- threads: those of torch's OpenMP, which is in the process already ---- */

extern void GOMP_parallel(void (*work)(void *), void *job, unsigned num_threads, unsigned flags);

/* ---- vectors ---- */

INLINE __mmask16 first_lanes(int count) {
    return count >= 16 ? 0xFFFF : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

INLINE __m512 load_bf16(const bf16 *from, __mmask16 lanes) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE void store_bf16(bf16 *to, __m512 x, __mmask16 lanes) {
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh(x));
}

INLINE __m512i pair_bf16(__m512 left, __m512 right) { return (__m512i)_mm512_cvtne2ps_pbh(right, left); }

/* 2^x, x from -inf up; relative error 4e-6. The polynomial is the minimax one of 2^f on [0, 1). */
INLINE __m512 exp2_ps(__m512 x) {
    __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* x - floor(x) */
    __m512 p = _mm512_set1_ps(1.3555747e-2f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.2032452e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4137999e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9302887e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000026f));
    return _mm512_scalef_ps(p, x);
}

/* ---- products ---- */

/* Two tiles a step of the left factor, rows 0..15 and 16..31: where the second lies, and the next step's, in bf16s */
typedef struct {
    const bf16 *at;
    int second, step;
} left_factor;

INLINE left_factor panel_at(const bf16 *at) { return (left_factor){at, BLOCK / 2, BLOCK}; }

#ifdef USE_TILES

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
} tile_configuration;

/* Tiles 0..3 hold results, 4 and 5 the left factor, 6 and 7 the right one; all are 16 rows of 64 bytes */
INLINE void begin_products(void) {
    tile_configuration c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 8; i++) c.bytes_per_row[i] = 64, c.rows[i] = 16;
    _tile_loadconfig(&c);
}

INLINE void end_products(void) { _tile_release(); }

INLINE void begin_square(const float *square, bool is_sum) {
    if (is_sum) {
        _tile_loadd(0, square, 64);
        _tile_loadd(1, square + TILE, 64);
        _tile_loadd(2, square + 2 * TILE, 64);
        _tile_loadd(3, square + 3 * TILE, 64);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
}

INLINE void add_step(left_factor a, const bf16 *strip) {
    _tile_loadd(4, a.at, 64);
    _tile_loadd(6, strip, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, strip + BLOCK / 2, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a.at + a.second, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

INLINE void end_square(float *square) {
    _tile_stored(0, square, 64);
    _tile_stored(1, square + TILE, 64);
    _tile_stored(2, square + 2 * TILE, 64);
    _tile_stored(3, square + 3 * TILE, 64);
}

/* square (+)= left . strip over num_steps steps. `meanwhile(arg)` is called every few steps: vector work that
 * runs beside the tiles. Steps are unrolled by four, as a mispredicted end of a short loop drains the tile unit. */
#define MULTIPLY(square, is_sum, left, strip, num_steps, meanwhile)                                                   \
    do {                                                                                                              \
        left_factor a_ = (left);                                                                                      \
        const bf16 *b_ = (strip);                                                                                     \
        begin_square(square, is_sum);                                                                                 \
        int s_ = (num_steps);                                                                                         \
        for (; s_ >= 4; s_ -= 4) {                                                                                    \
            add_step(a_, b_), a_.at += a_.step, b_ += BLOCK;                                                          \
            add_step(a_, b_), a_.at += a_.step, b_ += BLOCK;                                                          \
            add_step(a_, b_), a_.at += a_.step, b_ += BLOCK;                                                          \
            add_step(a_, b_), a_.at += a_.step, b_ += BLOCK;                                                          \
            meanwhile;                                                                                                \
        }                                                                                                             \
        for (; s_ > 0; s_--) add_step(a_, b_), a_.at += a_.step, b_ += BLOCK;                                         \
        end_square(square);                                                                                           \
    } while (0)

#else

INLINE void begin_products(void) {}
INLINE void end_products(void) {}

/* Eight rows of the square, in 16 registers */
INLINE void multiply_rows(float *square, bool is_sum, left_factor a, const bf16 *strip, int num_steps, int row) {
    float *to = square + (row / 16) * 2 * TILE + (row % 16) * 16;
    const bf16 *rows = a.at + (row / 16) * a.second + (row % 16) * SIDE;
    __m512 sum[8][2];
    for (int r = 0; r < 8; r++)
        for (int c = 0; c < 2; c++) sum[r][c] = is_sum ? _mm512_load_ps(to + c * TILE + r * 16) : _mm512_setzero_ps();
    for (int s = 0; s < num_steps; s++, rows += a.step, strip += BLOCK)
        for (int i = 0; i < 16; i++) {
            __m512bh b0 = (__m512bh)_mm512_load_si512(strip + i * SIDE);
            __m512bh b1 = (__m512bh)_mm512_load_si512(strip + BLOCK / 2 + i * SIDE);
            for (int r = 0; r < 8; r++) {
                int pair;
                memcpy(&pair, rows + r * SIDE + 2 * i, sizeof pair);
                __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
                sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
            }
        }
    for (int r = 0; r < 8; r++)
        for (int c = 0; c < 2; c++) _mm512_store_ps(to + c * TILE + r * 16, sum[r][c]);
}

#define MULTIPLY(square, is_sum, left, strip, num_steps, meanwhile)                                                   \
    do {                                                                                                              \
        for (int row_ = 0; row_ < SIDE; row_ += 8) multiply_rows(square, is_sum, left, strip, num_steps, row_);       \
        meanwhile;                                                                                                    \
    } while (0)

#endif
