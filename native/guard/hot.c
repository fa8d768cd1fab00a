/* The way from a hook to the ledger as one translation unit, so that the compiler makes one function of it: a pair
 * of allocation and free is some tens of nanoseconds, and calls are a good part of that. */
#define _GNU_SOURCE
#include "../ledger/ledger.c"
#include "../ledger/sizes.c"
#include "slice.c"
#include "charge.c"
