/* Statistics over the elements of a float32 array in one pass: see elements_native.py.
 *
 * Sums are made in float32 over a chunk, in many lanes, and in float64 beyond; where the mean outweighs the
 * deviation from it, in float64 throughout. Absolute values are compared
 * by their bits, which are in the same order. Counts are by sign and exponent; four tables take turns, so
 * that equal neighbours need not wait for each other.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define CHUNK 2048
#define BINS 512
#define TABLES 4
#define LINE 16
#define EXPONENT_SHIFT 23
#define OUTWEIGHING (15.0 / 16.0) /* as in centred.py */
#define MAGNITUDE 0x7fffffffu
#define INFINITE 0x7f800000u

#if defined(__x86_64__) && defined(__gnu_linux__)
#define EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_CPU
#endif

struct part {
    float abs_sum, sum, square_sum;
    uint32_t zeros, nonfinite, largest, smallest;
};

static inline __attribute__((always_inline)) void take(struct part *part, const float *value, uint16_t *code)
{
    uint32_t bits;
    memcpy(&bits, value, sizeof bits);
    *code = (uint16_t)(bits >> EXPONENT_SHIFT);
    bits &= MAGNITUDE;
    part->abs_sum += fabsf(*value);
    part->sum += *value;
    part->square_sum += *value * *value;
    part->zeros += bits == 0;
    part->nonfinite += bits >= INFINITE;
    part->largest = bits > part->largest ? bits : part->largest;
    part->smallest = bits < part->smallest ? bits : part->smallest;
}

EVERY_CPU static void sharpen(const float *values, int64_t n, double *sum, double *square_sum)
{
    double plain = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        double value = values[i];
        plain += value;
        squares += value * value;
    }
    *sum = plain;
    *square_sum = squares;
}

static void add(const struct part *part, const float *values, int64_t n, double *sums, uint32_t *extremes)
{
    double sum = part->sum, square_sum = part->square_sum;
    if (sum * sum > OUTWEIGHING * (double)n * square_sum)
        sharpen(values, n, &sum, &square_sum);
    sums[0] += part->abs_sum;
    sums[1] += sum;
    sums[2] += square_sum;
    sums[3] += part->zeros;
    sums[4] += part->nonfinite;
    extremes[0] = part->largest > extremes[0] ? part->largest : extremes[0];
    extremes[1] = part->smallest < extremes[1] ? part->smallest : extremes[1];
}

EVERY_CPU static void read_chunk(
    const float *restrict values, int64_t n, double *sums, uint32_t *extremes, uint16_t *restrict codes)
{
    struct part first = {0, 0, 0, 0, 0, 0, UINT32_MAX}, second = first;
    int64_t half = n / 2;
    for (int64_t i = 0; i < half; i++) {
        take(&first, values + i, codes + i);
        take(&second, values + half + i, codes + half + i);
    }
    add(&first, values, half, sums, extremes);
    add(&second, values + half, half, sums, extremes);
    if (n > 2 * half) {
        struct part last = {0, 0, 0, 0, 0, 0, UINT32_MAX};
        take(&last, values + n - 1, codes + n - 1);
        add(&last, values + n - 1, 1, sums, extremes);
    }
}

/* Count codes, and meanwhile fetch the n values that are read next: memory would idle otherwise. */
static void count(const uint16_t *codes, int64_t n, uint32_t tables[TABLES][BINS], const float *next)
{
    int64_t i = 0;
    for (; i + LINE <= n; i += LINE) {
        __builtin_prefetch(next + i);
        for (int t = 0; t < LINE; t++)
            tables[t % TABLES][codes[i + t]]++;
    }
    for (; i < n; i++)
        tables[0][codes[i]]++;
}

/* Add n < 2^32 values to sums [5]: abs, plain, squares, zeros, nonfinite; to extremes [2]: bits of the largest
 * and of the smallest absolute value; and to counts [512], unless that is NULL. */
void hjepa_read_elements(const float *values, int64_t n, double *sums, uint32_t *extremes, int64_t *counts)
{
    uint32_t tables[TABLES][BINS] = {{0}};
    uint16_t codes[CHUNK];
    for (int64_t at = 0; at < n; at += CHUNK) {
        int64_t size = n - at < CHUNK ? n - at : CHUNK;
        read_chunk(values + at, size, sums, extremes, codes);
        if (counts)
            count(codes, size, tables, values + at + size);
    }
    for (int t = 0; counts && t < TABLES; t++)
        for (int bin = 0; bin < BINS; bin++)
            counts[bin] += tables[t][bin];
}
