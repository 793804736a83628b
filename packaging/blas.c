/* The part of BLAS that numpy multiplies with, in the place of OpenBLAS, which takes 28 MB and starts a thread for every
 * core. What numpy multiplies on a device is small: the weights of a bundle's router.
 *
 * Every sum is taken in one order, whatever the processor: built with -ffp-contract=off, x86-64 and arm64 give the same
 * bits. Numbers of 64 bits say how long things are; names are those of numpy's own OpenBLAS. The body, below, is
 * included once for each of the four types. */

#ifndef TYPE

#include <stdint.h>

typedef int64_t Int;
enum { ROW_MAJOR = 101, NO_TRANS = 111, CONJ_TRANS = 113, UPPER = 121 };
/* How many sums a dot product is taken in, and how large a piece of a matrix lies together while it is multiplied. */
enum { LANES = 16, DEEP = 32, WIDE = 64 };

#define TYPE float
#define NAME(of) scipy_cblas_s##of##64_
#define LOCAL(of) s_##of
#define GIVEN float
#define VALUE(given) (given)
#define CONJUGATE(number) (number)
#include "blas.c"

#define TYPE double
#define NAME(of) scipy_cblas_d##of##64_
#define LOCAL(of) d_##of
#define GIVEN double
#define VALUE(given) (given)
#define CONJUGATE(number) (number)
#include "blas.c"

#define IS_COMPLEX
#define TYPE float _Complex
#define NAME(of) scipy_cblas_c##of##64_
#define LOCAL(of) c_##of
#define GIVEN const void *
#define VALUE(given) (*(const TYPE *)(given))
#define CONJUGATE(number) (~(number))
#include "blas.c"

#define IS_COMPLEX
#define TYPE double _Complex
#define NAME(of) scipy_cblas_z##of##64_
#define LOCAL(of) z_##of
#define GIVEN const void *
#define VALUE(given) (*(const TYPE *)(given))
#define CONJUGATE(number) (~(number))
#include "blas.c"

#else

/* Where the first number of a vector is: one with a negative step begins at its end. */
static const TYPE *LOCAL(first)(const void *vector, Int n, Int step)
{
    return (const TYPE *)vector + (step < 0 ? (1 - n) * step : 0);
}

static TYPE LOCAL(sum)(Int n, const TYPE *x, Int step_x, const TYPE *y, Int step_y, int is_conjugate)
{
    TYPE sums[LANES] = {0}, sum = 0;
    Int at = 0;
    if (step_x == 1 && step_y == 1 && !is_conjugate) {
        for (; at + LANES <= n; at += LANES)
            for (int lane = 0; lane < LANES; lane++)
                sums[lane] += x[at + lane] * y[at + lane];
        for (int lane = 0; lane < LANES; lane++)
            sum += sums[lane];
    }
    for (; at < n; at++)
        sum += (is_conjugate ? CONJUGATE(x[at * step_x]) : x[at * step_x]) * y[at * step_y];
    return sum;
}

#ifdef IS_COMPLEX
void NAME(dotu_sub)(Int n, const void *x, Int step_x, const void *y, Int step_y, void *sum)
{
    *(TYPE *)sum = LOCAL(sum)(n, LOCAL(first)(x, n, step_x), step_x, LOCAL(first)(y, n, step_y), step_y, 0);
}

void NAME(dotc_sub)(Int n, const void *x, Int step_x, const void *y, Int step_y, void *sum)
{
    *(TYPE *)sum = LOCAL(sum)(n, LOCAL(first)(x, n, step_x), step_x, LOCAL(first)(y, n, step_y), step_y, 1);
}
#else
TYPE NAME(dot)(Int n, const void *x, Int step_x, const void *y, Int step_y)
{
    return LOCAL(sum)(n, LOCAL(first)(x, n, step_x), step_x, LOCAL(first)(y, n, step_y), step_y, 0);
}
#endif

/* y += alpha x */
void NAME(axpy)(Int n, GIVEN alpha, const void *given_x, Int step_x, void *given_y, Int step_y)
{
    const TYPE factor = VALUE(alpha), *x = LOCAL(first)(given_x, n, step_x);
    TYPE *y = (TYPE *)LOCAL(first)(given_y, n, step_y);
    for (Int at = 0; at < n; at++)
        y[at * step_y] += factor * x[at * step_x];
}

/* beta times what is there; a beta of 0 does not look at it. */
static TYPE LOCAL(kept)(TYPE beta, TYPE number)
{
    return beta == 0 ? 0 : beta * number;
}

/* y = alpha A x + beta y; A has `rows` rows as it lies in memory, before it is turned. */
void NAME(gemv)(int order, int turn, Int rows, Int columns, GIVEN alpha, const void *matrix, Int lead, const void *given_x,
                Int step_x, GIVEN beta, void *given_y, Int step_y)
{
    const int is_plain = turn == NO_TRANS;
    const Int down = (order == ROW_MAJOR) == is_plain ? lead : 1, along = (order == ROW_MAJOR) == is_plain ? 1 : lead;
    const Int out = is_plain ? rows : columns, in = is_plain ? columns : rows;
    const TYPE *a = matrix, *x = LOCAL(first)(given_x, in, step_x);
    TYPE *y = (TYPE *)LOCAL(first)(given_y, out, step_y);
    for (Int row = 0; row < out; row++) {
        const TYPE sum = LOCAL(sum)(in, a + row * down, along, x, step_x, turn == CONJ_TRANS);
        y[row * step_y] = LOCAL(kept)(VALUE(beta), y[row * step_y]) + VALUE(alpha) * sum;
    }
}

/* C = alpha A B + beta C, where A is m x k, B k x n, once they are turned. */
void NAME(gemm)(int order, int turn_a, int turn_b, Int m, Int n, Int k, GIVEN alpha, const void *given_a, Int lead_a,
                const void *given_b, Int lead_b, GIVEN beta, void *given_c, Int lead_c)
{
    if (order != ROW_MAJOR) { /* column by column, C lies as B' A' does row by row */
        NAME(gemm)(ROW_MAJOR, turn_b, turn_a, n, m, k, alpha, given_b, lead_b, given_a, lead_a, beta, given_c, lead_c);
        return;
    }
    const TYPE *a = given_a, *b = given_b, factor = VALUE(alpha);
    const Int down_a = turn_a == NO_TRANS ? lead_a : 1, along_a = turn_a == NO_TRANS ? 1 : lead_a;
    const Int down_b = turn_b == NO_TRANS ? lead_b : 1, along_b = turn_b == NO_TRANS ? 1 : lead_b;
    TYPE *c = given_c, piece[DEEP * WIDE];
    for (Int row = 0; row < m; row++)
        for (Int column = 0; column < n; column++)
            c[row * lead_c + column] = LOCAL(kept)(VALUE(beta), c[row * lead_c + column]);
    for (Int left = 0; left < n; left += WIDE)
        for (Int top = 0; top < k; top += DEEP) {
            const Int wide = n - left < WIDE ? n - left : WIDE, deep = k - top < DEEP ? k - top : DEEP;
            for (Int at = 0; at < deep; at++)
                for (Int column = 0; column < wide; column++) {
                    const TYPE number = b[(top + at) * down_b + (left + column) * along_b];
                    piece[at * WIDE + column] = turn_b == CONJ_TRANS ? CONJUGATE(number) : number;
                }
            for (Int row = 0; row < m; row++) {
                TYPE *target = c + row * lead_c + left;
                for (Int at = 0; at < deep; at++) {
                    const TYPE number = a[row * down_a + (top + at) * along_a];
                    const TYPE share = factor * (turn_a == CONJ_TRANS ? CONJUGATE(number) : number);
                    for (Int column = 0; column < wide; column++)
                        target[column] += share * piece[at * WIDE + column];
                }
            }
        }
}

/* One half of C = alpha A A' + beta C, or of A' A where A is turned; A A' has n rows. */
void NAME(syrk)(int order, int half, int turn, Int n, Int k, GIVEN alpha, const void *given_a, Int lead, GIVEN beta,
                void *given_c, Int lead_c)
{
    const int is_plain = (order == ROW_MAJOR) == (turn == NO_TRANS);
    const int is_upper = (order == ROW_MAJOR) == (half == UPPER); /* of C as it lies in memory, row by row */
    const Int down = is_plain ? lead : 1, along = is_plain ? 1 : lead;
    const TYPE *a = given_a;
    TYPE *c = given_c;
    for (Int row = 0; row < n; row++)
        for (Int column = is_upper ? row : 0; column < (is_upper ? n : row + 1); column++) {
            const TYPE sum = LOCAL(sum)(k, a + row * down, along, a + column * down, along, 0);
            c[row * lead_c + column] = LOCAL(kept)(VALUE(beta), c[row * lead_c + column]) + VALUE(alpha) * sum;
        }
}

#undef IS_COMPLEX
#undef TYPE
#undef NAME
#undef LOCAL
#undef GIVEN
#undef VALUE
#undef CONJUGATE

#endif
