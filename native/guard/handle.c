#define _GNU_SOURCE
#include "handle.h"

#include <stdlib.h>

struct handle_range {
    struct handle_range *next;
    uint64_t at;
    struct charge mapping, memory;
    bool known, last;
};

bool handle_drop(uint64_t handle, struct charge *c, bool *last) {
    if (!charge_count(CHARGE_HANDLE, handle, -1, c)) return false;
    *last = c->note == 0;
    return true;
}

void handle_dropped(uint64_t handle, struct charge c, bool last, bool freed) {
    if (freed && last) charge_undo(c.device, c.bytes);
    if (freed) return;
    c.note = 1;
    if (last)
        charge_keep(CHARGE_HANDLE, handle, c);
    else
        charge_count(CHARGE_HANDLE, handle, 1, &c);
}

void handle_mapped(uint64_t at, uint64_t bytes, uint64_t handle) {
    struct charge mapping = {.bytes = bytes, .note = handle}, c;
    if (charge_keep(CHARGE_MAPPING, at, mapping)) charge_count(CHARGE_HANDLE, handle, 1, &c);
}

struct handle_range *handle_unmap(uint64_t at, uint64_t bytes, uint64_t step) {
    struct handle_range *list = NULL;
    for (uint64_t next = at; next < at + bytes;) {
        struct handle_range *u = malloc(sizeof *u);
        if (u == NULL) break; /* what is left stays charged */
        *u = (struct handle_range){.next = list, .at = next};
        if (!charge_take(CHARGE_MAPPING, next, &u->mapping)) {
            free(u);
            next += step;
            continue;
        }
        u->known = handle_drop(u->mapping.note, &u->memory, &u->last);
        next += u->mapping.bytes;
        list = u;
    }
    return list;
}

void handle_unmapped(struct handle_range *range, bool freed) {
    while (range != NULL) {
        struct handle_range u = *range;
        free(range);
        if (!freed) charge_keep(CHARGE_MAPPING, u.at, u.mapping);
        if (u.known) handle_dropped(u.mapping.note, u.memory, u.last, freed);
        range = u.next;
    }
}
