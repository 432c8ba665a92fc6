/* Linear layers: out = a . weights + bias, and what follows in the network, done on each square while it is near.
 *
 * The floor is the tile unit: a step of a square is four products of 16 cycles. Squares of one strip follow each other
 * over the panels of a group that fits the second cache, and a square is finished while the next one is multiplied.
 */
#include "blocks.h"

enum { ROWS, GELU, RELU, GATED_GELU, ADD };

enum {
    GROUP_BYTES = 1000 * 1000, /* panels of a group: half of a second cache of 2 MB */
    MAX_STEPS = 64,            /* of an ADD that is done at once; longer sums go over the group again */
    UNITS_PER_THREAD = 4,      /* so that threads end together */
};

typedef struct {
    const bf16 *a;    /* panels, num_steps each */
    const bf16 *b;    /* strips, num_steps each */
    const float *bias; /* one number a column of the strips, or none */
    void *out;        /* ROWS: bf16 rows; GELU, RELU, GATED_GELU: panels; ADD: float32 rows, added to */
    int64_t row_length;
    int num_rows, num_columns, num_steps;
    int group_panels, unit_strips;
    atomic_int next;
} linear_job;

/* A square that is multiplied but not finished */
typedef struct {
    const float *square;
    int panel, strip, row;
    bool has_bias;
} unfinished;

/* x Phi(x) = x / (1 + 2^-g(x)), g = log2(Phi(x) / Phi(-x)), which is odd and nearly straight: the polynomial is fitted
 * so that the result's greatest error is 3.1e-6 where the divisor is exact. Both divisors here are the processor's
 * estimate, right to 2^-14; what comes of them is rounded to 2^-9. */
INLINE __m512 gelu(__m512 x) {
    const __m512 u = _mm512_min_ps(_mm512_set1_ps(30.0f), _mm512_mul_ps(x, x)); /* beyond, g is straight */
    __m512 g = _mm512_set1_ps(-3.21038640e-6f);
    g = _mm512_fmadd_ps(g, u, _mm512_set1_ps(8.79099158e-5f));
    g = _mm512_fmadd_ps(g, u, _mm512_set1_ps(3.62047013e-4f));
    g = _mm512_fmadd_ps(g, u, _mm512_set1_ps(-1.05229975e-1f));
    g = _mm512_fmadd_ps(g, u, _mm512_set1_ps(-2.30204378f));
    const __m512 e = exp2_ps(_mm512_mul_ps(g, x));
    return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}

/* 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3) */
INLINE __m512 gelu_tanh(__m512 x) {
    const float c = -2.0f * 0.79788456f * 1.44269504f;
    __m512 u = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(c * 0.044715f), _mm512_set1_ps(c));
    __m512 e = exp2_ps(_mm512_min_ps(_mm512_mul_ps(x, u), _mm512_set1_ps(126.0f)));
    return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}

INLINE void finish_row(const linear_job *job, int then, const unfinished *u, int r) {
    const float *from = u->square + (r >> 4) * 2 * TILE + (r & 15) * 16;
    const int row = u->panel * SIDE + r, column = u->strip * SIDE;
    __m512 left = _mm512_load_ps(from), right = _mm512_load_ps(from + TILE);
    if (u->has_bias) {
        left = _mm512_add_ps(left, _mm512_loadu_ps(job->bias + column));
        right = _mm512_add_ps(right, _mm512_loadu_ps(job->bias + column + 16));
    }
    if (then == ADD) {
        const int count = row < job->num_rows ? job->num_columns - column : 0;
        const __mmask16 l = first_lanes(count), m = first_lanes(count - 16);
        float *to = (float *)job->out + row * job->row_length + column;
        _mm512_mask_storeu_ps(to, l, _mm512_add_ps(left, _mm512_maskz_loadu_ps(l, to)));
        _mm512_mask_storeu_ps(to + 16, m, _mm512_add_ps(right, _mm512_maskz_loadu_ps(m, to + 16)));
    } else if (then == ROWS) {
        _mm512_storeu_si512((bf16 *)job->out + row * job->row_length + column, pair_bf16(left, right));
    } else if (then == GATED_GELU) { /* a strip is 16 columns of the gate, then the same 16 of what it scales */
        bf16 *to = (bf16 *)job->out + u->panel * SIDE * job->row_length + (u->strip / 2) * BLOCK + r * SIDE;
        store_bf16(to + u->strip % 2 * 16, _mm512_mul_ps(gelu_tanh(left), right), 0xFFFF);
    } else {
        bf16 *to = (bf16 *)job->out + u->panel * SIDE * job->row_length + u->strip * BLOCK + r * SIDE;
        const __m512 zero = _mm512_setzero_ps();
        left = then == GELU ? gelu(left) : _mm512_max_ps(zero, left); /* a NaN on the right is kept */
        right = then == GELU ? gelu(right) : _mm512_max_ps(zero, right);
        _mm512_store_si512(to, pair_bf16(left, right));
    }
}

/* Asks for the lines that a square will be written to, while it is being multiplied */
INLINE void fetch_rows(const linear_job *job, int then, int panel, int strip) {
    if (then != ADD && then != ROWS) return;
    const int64_t size = then == ADD ? sizeof(float) : sizeof(bf16);
    const char *at = (const char *)job->out + (panel * SIDE * job->row_length + strip * SIDE) * size;
    for (int r = 0; r < SIDE; r++, at += job->row_length * size) {
        __builtin_prefetch(at, 1, 2);
        if (then == ADD) __builtin_prefetch(at + LINE, 1, 2);
    }
}

INLINE void finish_rows(const linear_job *job, int then, unfinished *u, int count) {
    for (int end = u->row + count < SIDE ? u->row + count : SIDE; u->row < end; u->row++)
        finish_row(job, then, u, u->row);
}

INLINE void run_units(linear_job *job, int then) {
    float squares[2][BLOCK] __attribute__((aligned(LINE)));
    const int num_panels = (job->num_rows + SIDE - 1) / SIDE, num_strips = (job->num_columns + SIDE - 1) / SIDE;
    const int num_groups = (num_panels + job->group_panels - 1) / job->group_panels;
    const int units_a_group = (num_strips + job->unit_strips - 1) / job->unit_strips;
    const int parts = then == ADD ? (job->num_steps + MAX_STEPS - 1) / MAX_STEPS : 1;
    const int part_steps = (job->num_steps + parts - 1) / parts;
    unfinished before = {.row = SIDE};
    int which = 0;
    begin_products();
    for (int unit; (unit = atomic_fetch_add(&job->next, 1)) < num_groups * units_a_group;) {
        const int panel0 = unit / units_a_group * job->group_panels, strip0 = unit % units_a_group * job->unit_strips;
        const int panel1 = panel0 + job->group_panels < num_panels ? panel0 + job->group_panels : num_panels;
        const int strip1 = strip0 + job->unit_strips < num_strips ? strip0 + job->unit_strips : num_strips;
        for (int step = 0; step < job->num_steps; step += part_steps) {
            const int steps = step + part_steps < job->num_steps ? part_steps : job->num_steps - step;
            const int rows_a_turn = (SIDE + steps / 4 - 1) / (steps / 4 ? steps / 4 : 1);
            for (int strip = strip0; strip < strip1; strip++) {
                const bf16 *b = job->b + ((int64_t)strip * job->num_steps + step) * BLOCK;
                for (int panel = panel0; panel < panel1; panel++) {
                    const bf16 *a = job->a + ((int64_t)panel * job->num_steps + step) * BLOCK;
                    float *square = squares[which];
                    fetch_rows(job, then, panel, strip);
                    MULTIPLY(square, false, panel_at(a), b, steps, finish_rows(job, then, &before, rows_a_turn));
                    finish_rows(job, then, &before, SIDE);
                    before = (unfinished){square, panel, strip, 0, job->bias && step == 0};
                    which ^= 1;
                }
            }
        }
    }
    finish_rows(job, then, &before, SIDE);
    end_products();
}

/* One compiled loop for each thing that may follow */
#define WORKER(name, then)                                                                                            \
    static void name(void *job) { run_units(job, then); }
WORKER(work_rows, ROWS)
WORKER(work_gelu, GELU)
WORKER(work_relu, RELU)
WORKER(work_gated_gelu, GATED_GELU)
WORKER(work_add, ADD)
static void (*const WORKERS[])(void *) = {work_rows, work_gelu, work_relu, work_gated_gelu, work_add};

/* Columns and steps are those of the strips; num_columns may be less for ADD alone. `then` is an enum from above. */
void pes_linear(const bf16 *a, const bf16 *b, const float *bias, void *out, int64_t row_length, int num_rows,
                int num_columns, int num_steps, int then, int num_threads) {
    const int num_panels = (num_rows + SIDE - 1) / SIDE, num_strips = (num_columns + SIDE - 1) / SIDE;
    if (num_rows == 0) return;
    const int kept_steps = then == ADD && num_steps > MAX_STEPS ? MAX_STEPS : num_steps;
    int most = GROUP_BYTES / (kept_steps * BLOCK * (int)sizeof(bf16));
    if (most < 1) most = 1;
    const int num_groups = (num_panels + most - 1) / most;
    const int units_a_group = (num_threads * UNITS_PER_THREAD + num_groups - 1) / num_groups;
    linear_job job = {
        .a = a, .b = b, .bias = bias, .out = out, .row_length = row_length,
        .num_rows = num_rows, .num_columns = num_columns, .num_steps = num_steps,
        .group_panels = (num_panels + num_groups - 1) / num_groups,
        .unit_strips = (num_strips + units_a_group - 1) / units_a_group,
    };
    GOMP_parallel(WORKERS[then], &job, num_threads, 0);
}
