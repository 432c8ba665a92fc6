/* Norms: float32 rows in, panels of bf16 out. */
#include "blocks.h"

typedef struct {
    const float *x, *weight, *bias;
    bf16 *out;
    float eps;
    int num_rows, dim;
    atomic_int next;
} norm_job;

/* Layer norm, or RMS norm where there is no bias; columns up to the next multiple of 32 become zero */
INLINE void norm_row(const norm_job *job, const float *x, bf16 *to) {
    const int dim = job->dim;
    float mean = 0.0f;
    if (job->bias) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < dim; i += 16)
            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first_lanes(dim - i), x + i));
        mean = _mm512_reduce_add_ps(sum) / (float)dim;
    }
    const __m512 centre = _mm512_set1_ps(mean);
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < dim; i += 16) {
        const __mmask16 lanes = first_lanes(dim - i);
        const __m512 d = _mm512_maskz_sub_ps(lanes, _mm512_maskz_loadu_ps(lanes, x + i), centre);
        squares = _mm512_fmadd_ps(d, d, squares);
    }
    const float spread = _mm512_reduce_add_ps(squares) / (float)dim + job->eps;
    const __m512 scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(spread));
    for (int i = 0; i < dim; i += SIDE, to += BLOCK) {
        __m512 y[2];
        for (int half = 0; half < 2; half++) {
            const int at = i + 16 * half;
            const __mmask16 lanes = first_lanes(dim - at);
            const __m512 d = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + at), centre), scale);
            const __m512 bias = job->bias ? _mm512_maskz_loadu_ps(lanes, job->bias + at) : _mm512_setzero_ps();
            y[half] = _mm512_maskz_fmadd_ps(lanes, d, _mm512_maskz_loadu_ps(lanes, job->weight + at), bias);
        }
        _mm512_store_si512(to, pair_bf16(y[0], y[1]));
    }
}

static void work(void *arg) {
    norm_job *job = arg;
    const int num_steps = (job->dim + SIDE - 1) / SIDE, num_panels = (job->num_rows + SIDE - 1) / SIDE;
    for (int panel; (panel = atomic_fetch_add(&job->next, 1)) < num_panels;) {
        bf16 *to = job->out + (int64_t)panel * num_steps * BLOCK;
        for (int r = 0; r < SIDE; r++) {
            const int row = panel * SIDE + r;
            if (row < job->num_rows) norm_row(job, job->x + (int64_t)row * job->dim, to + r * SIDE);
            else
                for (int step = 0; step < num_steps; step++)
                    _mm512_store_si512(to + step * BLOCK + r * SIDE, _mm512_setzero_si512());
        }
    }
}

void pes_norm(const float *x, const float *weight, const float *bias, bf16 *out, float eps, int num_rows, int dim,
              int num_threads) {
    norm_job job = {.x = x, .weight = weight, .bias = bias, .out = out, .eps = eps, .num_rows = num_rows, .dim = dim};
    GOMP_parallel(work, &job, num_threads, 0);
}
