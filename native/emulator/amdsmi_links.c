/* The stand-in's connections: PCIe to the host, XGMI among the cards of a hive, and between which
 * cards there is what. */
#define _GNU_SOURCE
#include <string.h>

#include "amdsmi_parts.h"

/* ---- PCIe ----------------------------------------------------------------------------------- */

/* MT/s of one lane. */
static uint32_t speed(uint32_t generation) {
    static const uint32_t megatransfers[] = {0, 2500, 5000, 8000, 16000, 32000, 64000};
    unsigned known = sizeof megatransfers / sizeof *megatransfers;
    return generation < known ? megatransfers[generation] : 0;
}

FUNCTION amdsmi_get_pcie_info(void *handle, amdsmi_pcie_info_t *info) {
    CARD(handle, info);
    if (d->amd_pcie_generation == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    memset(info, 0xFF, sizeof *info);
    info->pcie_static.max_pcie_width = (uint16_t)d->amd_pcie_max_width;
    info->pcie_static.max_pcie_speed = speed(d->amd_pcie_max_generation);
    info->pcie_static.pcie_interface_version = d->amd_pcie_max_generation;
    info->pcie_static.max_pcie_interface_version = d->amd_pcie_max_generation;
    info->pcie_static.slot_type =
        d->amd_hive ? AMDSMI_CARD_FORM_FACTOR_OAM : AMDSMI_CARD_FORM_FACTOR_PCIE;
    info->pcie_metric.pcie_width = (uint16_t)d->amd_pcie_width;
    info->pcie_metric.pcie_speed = speed(d->amd_pcie_generation);
    info->pcie_metric.pcie_replay_count = d->amd_pcie_replays;
    info->pcie_metric.pcie_nak_sent_count = d->amd_pcie_naks_sent;
    info->pcie_metric.pcie_nak_received_count = d->amd_pcie_naks_received;
    return AMDSMI_STATUS_SUCCESS;
}

FIGURE(CARD, amdsmi_get_gpu_pci_replay_counter, uint64_t, d->amd_pcie_replays)

/* ---- between two cards ---------------------------------------------------------------------- */

/* The values of XGMI and PCIe changed places with library 26. */
static uint32_t number_of(uint32_t type) {
    if (amdsmi_major() >= 26 || type == AMDSMI_LINK_TYPE_INTERNAL) return type;
    return type == AMDSMI_LINK_TYPE_XGMI ? AMDSMI_LINK_TYPE_PCIE : AMDSMI_LINK_TYPE_XGMI;
}

enum { SOME = -1 }; /* links, of which nobody says how many */

/* The place of a card among those of its hive. */
static unsigned place(const device *d) {
    unsigned index[HAL_LEDGER_DEVICES], before = 0;
    for (unsigned i = 0, count = emulator_devices("amd", index); i < count; i++) {
        const device *other = emulator_device(index[i]);
        if (other == d) break;
        before += other->amd_hive == d->amd_hive;
    }
    return before;
}

/* XGMI links from one card of a hive straight to another. */
static int joints(const device *from, const device *to) {
    if (from->amd_xgmi[0] == 0) return 1;
    unsigned at = place(to);
    char word = at < strnlen(from->amd_xgmi, sizeof from->amd_xgmi) ? from->amd_xgmi[at] : '-';
    if (word >= '1' && word <= '9') return word - '0';
    return word == '?' ? SOME : 0;
}

struct way {
    uint32_t type;
    uint64_t hops, weight; /* as KFD weighs them */
    int joints;
};

/* AMD SMI calls XGMI one hop however many cards lie between; the weight is 15 for each real one. */
static struct way between(const device *a, const device *b) {
    if (a == b) return (struct way){AMDSMI_LINK_TYPE_INTERNAL, 0, 0, 0};
    if (a->amd_hive != 0 && a->amd_hive == b->amd_hive) {
        int straight = joints(a, b);
        return (struct way){AMDSMI_LINK_TYPE_XGMI, 1, straight != 0 ? 15 : 30, straight};
    }
    if (a->numa_node == b->numa_node) return (struct way){AMDSMI_LINK_TYPE_PCIE, 2, 40, 0};
    return (struct way){AMDSMI_LINK_TYPE_PCIE, 3, 72, 0};
}

#define PAIR(from, to, out) \
    PROCESSOR(from, out); \
    const processor *other = NULL; \
    do { \
        amdsmi_status_t wrong = amdsmi_find(to, out, &other); \
        if (wrong != AMDSMI_STATUS_SUCCESS) return wrong; \
    } while (0); \
    struct way way = between(d, other->card); \
    (void)way

FUNCTION amdsmi_topo_get_link_type(void *from, void *to, uint64_t *hops, uint32_t *type) {
    PAIR(from, to, hops);
    if (type == NULL) return AMDSMI_STATUS_INVAL;
    *hops = way.hops;
    *type = number_of(way.type);
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_topo_get_link_weight(void *from, void *to, uint64_t *weight) {
    PAIR(from, to, weight);
    *weight = way.weight;
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_topo_get_p2p_status(void *from, void *to, uint32_t *type,
                                    amdsmi_p2p_capability_t *able) {
    PAIR(from, to, type);
    if (able == NULL) return AMDSMI_STATUS_INVAL;
    *type = number_of(way.type);
    bool xgmi = way.type == AMDSMI_LINK_TYPE_XGMI;
    *able = (amdsmi_p2p_capability_t){xgmi, xgmi, xgmi, true, true};
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_is_P2P_accessible(void *from, void *to, bool *accessible) {
    PAIR(from, to, accessible);
    *accessible = true;
    return AMDSMI_STATUS_SUCCESS;
}

static uint32_t gigabits(const device *d) { return d->amd_xgmi_lanes * d->amd_xgmi_gigabits; }

/* MB/s of one link, and of all; over XGMI only: for other ways the real library knows none either. */
FUNCTION amdsmi_get_minmax_bandwidth_between_processors(void *from, void *to, uint64_t *least,
                                                        uint64_t *most) {
    PAIR(from, to, least);
    if (most == NULL) return AMDSMI_STATUS_INVAL;
    if (way.type != AMDSMI_LINK_TYPE_XGMI || way.joints < 1 || gigabits(d) == 0)
        return AMDSMI_STATUS_NOT_SUPPORTED;
    *least = (uint64_t)gigabits(d) * 1000 / 8;
    *most = *least * (unsigned)way.joints;
    return AMDSMI_STATUS_SUCCESS;
}

/* ---- XGMI ----------------------------------------------------------------------------------- */

struct peers {
    const device *of;
    unsigned count;
    const processor *list[AMDSMI_DEVICES];
};

static bool joined(const processor *p, unsigned position, void *context) {
    struct peers *peers = context;
    (void)position;
    if (p->partition != 0 || p->card->amd_hive != peers->of->amd_hive) return true;
    if (p->card != peers->of && joints(peers->of, p->card) != 0) peers->list[peers->count++] = p;
    return peers->count < AMDSMI_XGMI_LINKS;
}

static struct peers peers_of(const device *d) {
    struct peers peers = {.of = d};
    if (d->amd_hive != 0) amdsmi_each(joined, &peers);
    return peers;
}

FUNCTION amdsmi_get_link_metrics(void *handle, amdsmi_link_metrics_t *info) {
    CARD(handle, info);
    struct peers peers = peers_of(d);
    if (peers.count == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *info = (amdsmi_link_metrics_t){.num_links = peers.count};
    for (unsigned i = 0; i < peers.count; i++) {
        info->links[i].bdf = amdsmi_bdf(peers.list[i]);
        info->links[i].bit_rate = d->amd_xgmi_gigabits;
        int links = joints(d, peers.list[i]->card);
        info->links[i].max_bandwidth = links == SOME ? AMDSMI_NONE32 : gigabits(d) * (unsigned)links;
        info->links[i].link_type = number_of(AMDSMI_LINK_TYPE_XGMI);
    }
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_gpu_xgmi_link_status(void *handle, amdsmi_xgmi_link_status_t *info) {
    CARD(handle, info);
    struct peers peers = peers_of(d);
    if (peers.count == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *info = (amdsmi_xgmi_link_status_t){.total_links = peers.count};
    for (unsigned i = 0; i < peers.count; i++) info->status[i] = AMDSMI_XGMI_LINK_UP;
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_xgmi_info(void *handle, amdsmi_xgmi_info_t *info) {
    CARD(handle, info);
    if (d->amd_hive == 0) return AMDSMI_STATUS_NOT_SUPPORTED;
    *info = (amdsmi_xgmi_info_t){.xgmi_lanes = (uint8_t)d->amd_xgmi_lanes,
                                 .xgmi_hive_id = d->amd_hive,
                                 .xgmi_node_id = place(d),
                                 .index = amdsmi_position(p)};
    return AMDSMI_STATUS_SUCCESS;
}

FUNCTION amdsmi_get_link_topology_nearest(void *handle, uint32_t type,
                                          amdsmi_topology_nearest_t *info) {
    CARD(handle, info);
    struct peers peers = peers_of(d);
    *info = (amdsmi_topology_nearest_t){0};
    if (type != number_of(AMDSMI_LINK_TYPE_XGMI)) return AMDSMI_STATUS_SUCCESS;
    info->count = peers.count;
    for (unsigned i = 0; i < peers.count; i++)
        info->processor_list[i] = (void *)(uintptr_t)peers.list[i];
    return AMDSMI_STATUS_SUCCESS;
}
