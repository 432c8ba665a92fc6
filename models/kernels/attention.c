/* Attention inside sequences: softmax(scale q k + bias) v, without ever holding more scores than a tile row's.
 *
 * After FlashAttention (Dao et al. 2022): scores are made for 32 queries and MAX_KEYS keys at a time, in the first two
 * caches, and the running sum is rescaled when a larger score comes. Exponentials are the floor: some ten vector
 * operations for 16 scores. Every number of a sequence depends on that sequence alone, and on nothing of its place.
 */
#include "blocks.h"

enum {
    MAX_KEYS = 512,            /* whose scores are held at a time */
    UNIT_QUERIES = 512,        /* of one unit of work: keys and values are packed once for so many */
    SCORES_STEP = BLOCK + 16,  /* floats between squares of scores: a line more than 4 KB, else they share cache sets */
    AHEAD = 24,                /* rows that are fetched before they are needed: they lie pages apart */
};

static const float LOG2_E = 1.44269504f;

typedef struct {
    int sequence, head, query;
} unit;

typedef struct {
    const bf16 *qkv; /* rows of (3, num_heads, head_dim), row_length apart */
    bf16 *out;       /* panels of (num_heads * head_dim) */
    const int32_t *starts;
    const float *cos, *sin; /* (positions, head_dim / 2), or none */
    const float *bias;      /* (num_heads, 2 * longest - 1) by key - query + longest - 1, times log2(e), or none */
    int64_t row_length;
    int num_heads, head_dim, longest;
    float scale;
    const unit *units;
    int num_units, max_length;
    atomic_int next;
    atomic_bool is_out_of_memory;
} attention_job;

/* One row of a head, rotated to its position, into `to`; the source of the rotation: fair-esm rotary_embedding.py */
INLINE void read_row(const attention_job *job, const bf16 *from, int position, bf16 *to, bool is_rotated) {
    const int dim = job->head_dim, half = dim / 2;
    if (!is_rotated) {
        for (int i = 0; i < dim; i += 16) {
            const __mmask16 lanes = first_lanes(dim - i);
            _mm256_mask_storeu_epi16(to + i, lanes, _mm256_maskz_loadu_epi16(lanes, from + i));
        }
        return;
    }
    const float *cos = job->cos + (int64_t)position * half, *sin = job->sin + (int64_t)position * half;
    for (int i = 0; i < half; i += 16) {
        const __mmask16 lanes = first_lanes(half - i);
        const __m512 left = load_bf16(from + i, lanes), right = load_bf16(from + half + i, lanes);
        const __m512 c = _mm512_maskz_loadu_ps(lanes, cos + i), s = _mm512_maskz_loadu_ps(lanes, sin + i);
        store_bf16(to + i, _mm512_fmsub_ps(left, c, _mm512_mul_ps(right, s)), lanes);
        store_bf16(to + half + i, _mm512_fmadd_ps(right, c, _mm512_mul_ps(left, s)), lanes);
    }
}

INLINE void fetch_row(const bf16 *row, int dim) {
    for (const char *at = (const char *)row; at < (const char *)(row + dim); at += LINE) _mm_prefetch(at, _MM_HINT_T0);
}

/* 16 rows of 16 pairs each, `row_pairs` apart, turned into 16 rows of one pair of each: a tile of a strip */
INLINE void transpose_pairs(const bf16 *rows, int row_length, bf16 *tile) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(rows + i * row_length);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        _mm512_store_si512(tile + j * SIDE, _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
        _mm512_store_si512(tile + (j + 8) * SIDE, _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
    }
}

/* Keys of a head as strips of 32 keys, a step for 32 numbers of the head */
INLINE void pack_keys(const attention_job *job, const bf16 *keys, int length, bf16 *to, bf16 *rows, bool is_rotated) {
    const int num_steps = (job->head_dim + SIDE - 1) / SIDE, width = num_steps * SIDE;
    memset(rows, 0, 16 * width * sizeof(bf16));
    for (int key = 0; key < length; key += 16) {
        for (int i = 0; i < 16; i++) {
            if (key + i < length) {
                fetch_row(keys + (key + i + AHEAD) * job->row_length, job->head_dim);
                read_row(job, keys + (key + i) * job->row_length, key + i, rows + i * width, is_rotated);
            } else {
                memset(rows + i * width, 0, width * sizeof(bf16));
            }
        }
        bf16 *strip = to + (key / SIDE) * num_steps * BLOCK + (key % SIDE) / 16 * (BLOCK / 2);
        for (int step = 0; step < num_steps; step++) transpose_pairs(rows + step * SIDE, width, strip + step * BLOCK);
    }
    if (length % SIDE > 0 && length % SIDE <= 16)
        for (int step = 0; step < num_steps; step++)
            memset(to + ((length / SIDE) * num_steps + step) * BLOCK + BLOCK / 2, 0, BLOCK);
}

/* Values of a head as strips of 32 of its numbers, a step for 32 keys */
INLINE void pack_values(const attention_job *job, const bf16 *values, int length, bf16 *to, int strip_length) {
    for (int key = 0; key < length; key += 2) {
        const bf16 *even = values + key * job->row_length, *odd = even + job->row_length;
        fetch_row(even + AHEAD * job->row_length, job->head_dim);
        fetch_row(odd + AHEAD * job->row_length, job->head_dim);
        for (int i = 0; i < job->head_dim; i += 16) {
            const __mmask16 lanes = first_lanes(job->head_dim - i), last = key + 1 < length ? lanes : 0;
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, even + i));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(last, odd + i));
            bf16 *tile = to + (i / SIDE) * strip_length + (key / SIDE) * BLOCK + i % SIDE / 16 * (BLOCK / 2);
            _mm512_store_si512(tile + key % SIDE * 16, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

/* What is kept of 32 queries between blocks of keys */
typedef struct {
    float largest[SIDE], sum[SIDE];
} softmax_state;

/* Scores of one query become the bf16 weights of its values, in place; the running sums are brought up to date */
INLINE void soften_row(float *scores, int num_keys, const float *bias, float factor, int row, bool is_first,
                       softmax_state *state, float *sums, int num_sums) {
    const int num_squares = (num_keys + SIDE - 1) / SIDE, rest = num_keys % SIDE;
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    float *from = scores + (row >> 4) * 2 * TILE + (row & 15) * 16;
    __m512 most0 = lowest, most1 = lowest;
    if (bias) {
        const __m512 times = _mm512_set1_ps(factor);
        for (int i = 0; i < num_squares; i++) {
            float *at = from + i * SCORES_STEP;
            const int left = num_keys - i * SIDE;
            const __m512 b0 = _mm512_maskz_loadu_ps(first_lanes(left), bias + i * SIDE);
            const __m512 b1 = _mm512_maskz_loadu_ps(first_lanes(left - 16), bias + i * SIDE + 16);
            _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_load_ps(at), times, b0));
            _mm512_store_ps(at + TILE, _mm512_fmadd_ps(_mm512_load_ps(at + TILE), times, b1));
        }
        factor = 1.0f;
    }
    if (rest) {
        float *at = from + (num_squares - 1) * SCORES_STEP;
        _mm512_store_ps(at, _mm512_mask_mov_ps(lowest, first_lanes(rest), _mm512_load_ps(at)));
        _mm512_store_ps(at + TILE, _mm512_mask_mov_ps(lowest, first_lanes(rest - 16), _mm512_load_ps(at + TILE)));
    }
    for (int i = 0; i < num_squares; i++) {
        most0 = _mm512_max_ps(most0, _mm512_load_ps(from + i * SCORES_STEP));
        most1 = _mm512_max_ps(most1, _mm512_load_ps(from + i * SCORES_STEP + TILE));
    }
    const float most = factor * _mm512_reduce_max_ps(_mm512_max_ps(most0, most1));
    float kept = 0.0f;
    if (is_first) {
        state->largest[row] = most;
    } else {
        const float before = state->largest[row];
        kept = 1.0f;
        if (most > before) {
            kept = _mm512_cvtss_f32(exp2_ps(_mm512_set1_ps(before - most)));
            state->largest[row] = most;
            for (int i = 0; i < num_sums; i++) {
                float *at = sums + i * BLOCK + (row >> 4) * 2 * TILE + (row & 15) * 16;
                _mm512_store_ps(at, _mm512_mul_ps(_mm512_set1_ps(kept), _mm512_load_ps(at)));
                _mm512_store_ps(at + TILE, _mm512_mul_ps(_mm512_set1_ps(kept), _mm512_load_ps(at + TILE)));
            }
        }
    }
    const __m512 times = _mm512_set1_ps(factor), less = _mm512_set1_ps(-state->largest[row]);
    __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0;
    for (int i = 0; i < num_squares; i++) {
        float *at = from + i * SCORES_STEP;
        const __m512 left = exp2_ps(_mm512_fmadd_ps(_mm512_load_ps(at), times, less));
        const __m512 right = exp2_ps(_mm512_fmadd_ps(_mm512_load_ps(at + TILE), times, less));
        sum0 = _mm512_add_ps(sum0, left);
        sum1 = _mm512_add_ps(sum1, right);
        _mm512_store_si512((void *)at, pair_bf16(left, right));
    }
    state->sum[row] = kept * (is_first ? 0.0f : state->sum[row]) + _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
}

/* A piece of a row of panels, which may lie across two blocks */
INLINE void write_columns(bf16 *panel_row, int column, __m512 x, int count) {
    bf16 values[32] __attribute__((aligned(LINE)));
    const int room = SIDE - column % SIDE, rest = count - room;
    const __m256i all = (__m256i)_mm512_cvtneps_pbh(x);
    bf16 *to = panel_row + column / SIDE * BLOCK;
    _mm256_mask_storeu_epi16(to + column % SIDE, first_lanes(room < count ? room : count), all);
    if (rest <= 0) return;
    _mm256_store_si256((__m256i *)values, all);
    const __m256i others = _mm256_loadu_si256((const __m256i *)(values + room));
    _mm256_mask_storeu_epi16(to + BLOCK, first_lanes(rest), others);
}

/* Working memory of a thread */
typedef struct {
    bf16 *keys, *values, *queries, *rows;
    float *scores, *sums;
    void *all;
} workspace;

static workspace make_workspace(int length, int head_dim) {
    const size_t blocks = (length + SIDE - 1) / SIDE, steps = (head_dim + SIDE - 1) / SIDE;
    const size_t packed = blocks * steps * BLOCK * sizeof(bf16), rows = SIDE * steps * SIDE * sizeof(bf16);
    const size_t scores = MAX_KEYS / SIDE * SCORES_STEP * sizeof(float), sums = steps * BLOCK * sizeof(float);
    char *at = aligned_alloc(4096, (2 * packed + 2 * rows + scores + sums + 4095) / 4096 * 4096);
    workspace w = {.all = at};
    if (!at) return w;
    memset(at, 0, 2 * packed + 2 * rows);
    w.keys = (bf16 *)at, at += packed;
    w.values = (bf16 *)at, at += packed;
    w.queries = (bf16 *)at, at += rows;
    w.rows = (bf16 *)at, at += rows;
    w.sums = (float *)at, at += sums;
    w.scores = (float *)at;
    return w;
}

INLINE void attend_unit(const attention_job *job, const workspace *w, unit u, bool is_rotated) {
    const int start = job->starts[u.sequence], length = job->starts[u.sequence + 1] - start;
    const int width = job->num_heads * job->head_dim, num_steps = (job->head_dim + SIDE - 1) / SIDE;
    const int strip_length = (length + SIDE - 1) / SIDE * BLOCK;
    const int last_query = u.query + UNIT_QUERIES < length ? u.query + UNIT_QUERIES : length;
    const bf16 *queries = job->qkv + start * job->row_length + u.head * job->head_dim;
    pack_keys(job, queries + width, length, w->keys, w->rows, is_rotated);
    if (length % SIDE) /* what an earlier sequence left behind the last key must not be a NaN */
        for (int i = 0; i < num_steps; i++) memset(w->values + (i + 1) * strip_length - BLOCK, 0, 2 * BLOCK);
    pack_values(job, queries + 2 * width, length, w->values, strip_length);
    for (int query = u.query; query < last_query; query += SIDE) {
        const int num_queries = last_query - query < SIDE ? last_query - query : SIDE;
        for (int i = 0; i < num_queries; i++) {
            bf16 rotated[num_steps * SIDE] __attribute__((aligned(LINE)));
            const bf16 *row = queries + (query + i) * job->row_length;
            fetch_row(row + AHEAD * job->row_length, job->head_dim);
            memset(rotated, 0, sizeof rotated);
            read_row(job, row, query + i, rotated, is_rotated);
            for (int step = 0; step < num_steps; step++)
                _mm512_store_si512(w->queries + step * BLOCK + i * SIDE, _mm512_load_si512(rotated + step * SIDE));
        }
        softmax_state state;
        for (int key = 0; key < length; key += MAX_KEYS) {
            const int num_keys = length - key < MAX_KEYS ? length - key : MAX_KEYS;
            const int num_squares = (num_keys + SIDE - 1) / SIDE;
            for (int i = 0; i < num_squares; i++)
                MULTIPLY(w->scores + i * SCORES_STEP, false, panel_at(w->queries),
                         w->keys + (key / SIDE + i) * num_steps * BLOCK, num_steps, (void)0);
            for (int i = 0; i < num_queries; i++) {
                const float *bias = 0;
                if (job->bias)
                    bias = job->bias + u.head * (2ll * job->longest - 1) + job->longest - 1 - (query + i) + key;
                soften_row(w->scores, num_keys, bias, job->scale * LOG2_E, i, key == 0, &state, w->sums, num_steps);
            }
            const left_factor weights = {(const bf16 *)w->scores, 4 * TILE, 2 * SCORES_STEP};
            for (int i = 0; i < num_steps; i++)
                MULTIPLY(w->sums + i * BLOCK, key > 0, weights, w->values + i * strip_length + key / SIDE * BLOCK,
                         num_squares, (void)0);
        }
        for (int i = 0; i < num_queries; i++) {
            const int row = start + query + i;
            bf16 *to = job->out + (int64_t)(row / SIDE) * ((width + SIDE - 1) / SIDE) * BLOCK + row % SIDE * SIDE;
            const __m512 share = _mm512_set1_ps(1.0f / state.sum[i]);
            for (int c = 0; c < job->head_dim; c += 16) {
                const float *from = w->sums + c / SIDE * BLOCK + (i >> 4) * 2 * TILE + (i & 15) * 16 + c % SIDE * 16;
                const int count = job->head_dim - c < 16 ? job->head_dim - c : 16;
                write_columns(to, u.head * job->head_dim + c, _mm512_mul_ps(share, _mm512_load_ps(from)), count);
            }
        }
    }
}

static void work(void *arg) {
    attention_job *job = arg;
    workspace w = make_workspace(job->max_length, job->head_dim);
    if (!w.all) {
        job->is_out_of_memory = true;
        return;
    }
    begin_products();
    for (int i; (i = atomic_fetch_add(&job->next, 1)) < job->num_units;)
        if (job->cos) attend_unit(job, &w, job->units[i], true);
        else attend_unit(job, &w, job->units[i], false);
    end_products();
    free(w.all);
}

/* starts: (num_sequences + 1) first rows of sequences. Returns 0, or 1 where memory was lacking. */
int pes_attention(const bf16 *qkv, bf16 *out, const int32_t *starts, int num_sequences, int64_t row_length,
                  int num_heads, int head_dim, const float *cos, const float *sin, const float *bias, int longest,
                  float scale, int num_threads) {
    int num_units = 0, max_length = 0;
    for (int i = 0; i < num_sequences; i++) {
        const int length = starts[i + 1] - starts[i];
        num_units += num_heads * ((length + UNIT_QUERIES - 1) / UNIT_QUERIES);
        if (length > max_length) max_length = length;
    }
    unit *units = malloc(num_units * sizeof *units), *next = units;
    if (!units) return 1;
    for (int i = 0; i < num_sequences; i++)
        for (int head = 0; head < num_heads; head++)
            for (int query = 0; query < starts[i + 1] - starts[i]; query += UNIT_QUERIES)
                *next++ = (unit){i, head, query};
    attention_job job = {
        .qkv = qkv, .out = out, .starts = starts, .cos = cos, .sin = sin, .bias = bias,
        .row_length = row_length, .num_heads = num_heads, .head_dim = head_dim, .longest = longest, .scale = scale,
        .units = units, .num_units = num_units, .max_length = max_length,
    };
    GOMP_parallel(work, &job, num_threads, 0);
    free(units);
    return job.is_out_of_memory;
}
