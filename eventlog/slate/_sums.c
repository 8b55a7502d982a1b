/* The sum of a set of rows: each row's SipHash-2-4 of 128 bits with a secret key, added up modulo 2^64 in two lanes.

Two sets of rows have the same sum when they are the same, in whatever order the rows come. For any two that differ, the
sums are the same with a probability of 2^-128 for one who doesn't know the secret, which is new for each use: that is
the multiset hash of Clarke et al., "Incremental Multiset Hash Functions" (2003), by addition. SipHash is a keyed
pseudo-random function: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012). */

#include "_rows.h"

#include <stdlib.h>
#include <string.h>

static uint64_t word(const uint8_t *at)
{
    uint64_t number = 0;
    for (int i = 7; i >= 0; i--)
        number = number << 8 | at[i];
    return number;
}

static uint64_t turned(uint64_t number, int bits) { return number << bits | number >> (64 - bits); }

static void rounds(uint64_t v[4], int count)
{
    while (count-- > 0) {
        v[0] += v[1];
        v[2] += v[3];
        v[1] = turned(v[1], 13) ^ v[0];
        v[3] = turned(v[3], 16) ^ v[2];
        v[0] = turned(v[0], 32);
        v[2] += v[1];
        v[0] += v[3];
        v[1] = turned(v[1], 17) ^ v[2];
        v[3] = turned(v[3], 21) ^ v[0];
        v[2] = turned(v[2], 32);
    }
}

void add_row(Sum *sum, const uint8_t *row, size_t bytes, const uint8_t *secret)
{
    uint64_t k0 = word(secret), k1 = word(secret + 8);
    uint64_t v[4] = {k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d ^ 0xee, k0 ^ 0x6c7967656e657261,
                     k1 ^ 0x7465646279746573};
    uint8_t last[8] = {0};
    size_t whole = bytes - bytes % 8;
    for (size_t at = 0; at < whole; at += 8) {
        uint64_t m = word(row + at);
        v[3] ^= m;
        rounds(v, 2);
        v[0] ^= m;
    }
    memcpy(last, row + whole, bytes % 8);
    last[7] = (uint8_t)bytes;
    uint64_t m = word(last);
    v[3] ^= m;
    rounds(v, 2);
    v[0] ^= m;
    v[2] ^= 0xee;
    rounds(v, 4);
    sum->lanes[0] += v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    rounds(v, 4);
    sum->lanes[1] += v[0] ^ v[1] ^ v[2] ^ v[3];
    sum->rows++;
}

PyObject *sum_as_tuple(const Sum *sum)
{
    return Py_BuildValue("KKK", (unsigned long long)sum->rows, (unsigned long long)sum->lanes[0],
                         (unsigned long long)sum->lanes[1]);
}

int secret_of(PyObject *object, const uint8_t **secret)
{
    char *found;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(object, &found, &size) < 0)
        return 0;
    if (size != SECRET_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a secret has 16 bytes");
        return 0;
    }
    *secret = (const uint8_t *)found;
    return 1;
}

/* One behind the other, as the rows of a page are: see add_row. The block grows as needed. */
static int laid_out(PyObject *object, uint8_t **block, size_t *room, size_t *used)
{
    char *found;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(object, &found, &size) < 0)
        return -1;
    if (size > INT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a key or a value has 2 GiB or more");
        return -1;
    }
    if (*used + 4 + size > *room) {
        uint8_t *larger = realloc(*block, 2 * (*used + 4 + size));
        if (larger == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        *block = larger;
        *room = 2 * (*used + 4 + size);
    }
    for (int i = 0; i < 4; i++)
        (*block)[*used + i] = (uint8_t)(size >> (24 - 8 * i));
    memcpy(*block + *used + 4, found, size);
    *used += 4 + size;
    return 0;
}

PyObject *rows_sum(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *dict, *secret_as_bytes, *key, *value;
    const uint8_t *secret;
    if (!PyArg_ParseTuple(arguments, "OO:sum_rows", &dict, &secret_as_bytes) || !secret_of(secret_as_bytes, &secret))
        return NULL;
    if (PyDict_Size(dict) < 0)
        return NULL;
    Sum sum = {0};
    uint8_t *block = NULL;
    size_t room = 0;
    Py_ssize_t at = 0;
    while (PyDict_Next(dict, &at, &key, &value)) {
        size_t used = 0;
        if (laid_out(key, &block, &room, &used) < 0 || laid_out(value, &block, &room, &used) < 0) {
            free(block);
            return NULL;
        }
        add_row(&sum, block, used, secret);
    }
    free(block);
    return sum_as_tuple(&sum);
}
