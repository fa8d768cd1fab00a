/* The kernel's word for a process's life, and where a mapped ledger has its file.
 *
 * A process that joins locks its slot's byte with an open-file-description lock, maps one page of that
 * open file, and closes the descriptor. The lock lives as long as the open file does, and that as long
 * as the mapping: it ends with the process's memory, by SIGKILL, exit or exec, seen from every pid
 * namespace. No descriptor is left that closefrom() could sweep away, MADV_DONTFORK keeps it from forked
 * children, and no thread's end touches it. (A robust mutex ends with the thread that locked it.)
 *
 * Where this cannot be had (overlayfs maps another open file than the one that is locked; the path is not
 * to be seen any more) a process joins unvouched, and only /proc of its own pid namespace tells its death.
 */
#ifndef HAL_VOUCH_H
#define HAL_VOUCH_H

#include <stdbool.h>
#include <sys/types.h>

#include "hal_ledger.h"

struct hal_home; /* what this process knows of a mapped ledger's file */

struct hal_home *hal_home_of(const struct hal_ledger *l); /* NULL: never attached */

/* Whose ledger's memory `address` lies in; NULL for nobody's. For a signal handler. */
struct hal_home *hal_home_at(const void *address);
void hal_home_lose(struct hal_home *home); /* marks it as cut short */

/* A descriptor of its own on the very file that is mapped; -1: the path does not lead to it any more. */
int hal_home_open(struct hal_home *home);
void hal_home_shut(int fd);

/* Locks as above, never waiting: slot 0 to HAL_LEDGER_SLOTS - 1, or HAL_RECOUNT. Owned by `fd`. */
enum { HAL_RECOUNT = HAL_LEDGER_SLOTS };
bool hal_home_lock(struct hal_home *home, int fd, int which);
void hal_home_unlock(struct hal_home *home, int fd, int which);

/* Locks a slot's byte for as long as this process's memory lives, or until hal_unvouch. */
enum hal_vouch { HAL_VOUCHED, HAL_VOUCH_TAKEN, HAL_VOUCH_IMPOSSIBLE };
enum hal_vouch hal_vouch(struct hal_home *home, int slot);
void hal_unvouch(struct hal_home *home, int slot);

#endif
