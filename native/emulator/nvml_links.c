/* How a device is connected: PCIe, NVLink, and its place among the others. */
#include <stdio.h>
#include <string.h>

#include "nvml_call.h"

/* ---- PCIe ------------------------------------------------------------------------------------ */

FIGURE(nvmlDeviceGetCurrPcieLinkGeneration, d->nvidia_pcie_generation)
FIGURE(nvmlDeviceGetMaxPcieLinkGeneration, d->nvidia_pcie_generation_max)
FIGURE(nvmlDeviceGetGpuMaxPcieLinkGeneration, d->nvidia_pcie_generation_max)
FIGURE(nvmlDeviceGetCurrPcieLinkWidth, d->nvidia_pcie_width)
FIGURE(nvmlDeviceGetMaxPcieLinkWidth, d->nvidia_pcie_width_max)
FIGURE(nvmlDeviceGetPcieReplayCounter, d->nvidia_pcie_replays)

NVML nvmlDeviceGetPcieThroughput(nvmlDevice_t handle, unsigned counter, unsigned *out) {
    DEVICE(handle);
    CHECK(counter < NVML_PCIE_UTIL_COUNT);
    return nvml_give(counter == NVML_PCIE_UTIL_TX_BYTES ? d->nvidia_pcie_tx_kilobytes_per_second
                                                        : d->nvidia_pcie_rx_kilobytes_per_second,
                     out);
}

/* ---- NVLink ---------------------------------------------------------------------------------- */

nvmlReturn_t nvml_link(const struct hal_machine_device *d, unsigned link) {
    if (d->nvidia_links == 0) return NVML_ERROR_NOT_SUPPORTED;
    return link < d->nvidia_links ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

static bool up(const struct hal_machine_device *d, unsigned link) {
    return !(d->nvidia_links_down >> link & 1);
}

NVML nvmlDeviceGetNvLinkState(nvmlDevice_t handle, unsigned link, unsigned *active) {
    DEVICE(handle);
    TRY(nvml_link(d, link));
    return nvml_give(up(d, link), active);
}

NVML nvmlDeviceGetNvLinkVersion(nvmlDevice_t handle, unsigned link, unsigned *version) {
    DEVICE(handle);
    TRY(nvml_link(d, link));
    return nvml_give(d->nvidia_link_version, version);
}

NVML nvmlDeviceGetNvLinkCapability(nvmlDevice_t handle, unsigned link, unsigned capability,
                                   unsigned *out) {
    static const bool has[NVML_NVLINK_CAP_COUNT] = {
        [NVML_NVLINK_CAP_P2P_SUPPORTED] = true,  [NVML_NVLINK_CAP_SYSMEM_ACCESS] = true,
        [NVML_NVLINK_CAP_P2P_ATOMICS] = true,    [NVML_NVLINK_CAP_SYSMEM_ATOMICS] = true,
        [NVML_NVLINK_CAP_VALID] = true,
    };
    DEVICE(handle);
    TRY(nvml_link(d, link));
    CHECK(capability < NVML_NVLINK_CAP_COUNT);
    return nvml_give(has[capability], out);
}

NVML nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t handle, unsigned link, unsigned counter,
                                     unsigned long long *out) {
    DEVICE(handle);
    TRY(nvml_link(d, link));
    CHECK(counter < NVML_NVLINK_ERROR_COUNT);
    switch (counter) {
    case NVML_NVLINK_ERROR_DL_REPLAY: return nvml_give_wide(d->nvidia_link_replay_errors, out);
    case NVML_NVLINK_ERROR_DL_RECOVERY: return nvml_give_wide(d->nvidia_link_recovery_errors, out);
    case NVML_NVLINK_ERROR_DL_CRC_FLIT: return nvml_give_wide(d->nvidia_link_crc_errors, out);
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

NVML nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t handle, unsigned link, unsigned *type) {
    DEVICE(handle);
    TRY(nvml_link(d, link));
    if (d->nvidia_switches == 0 || !up(d, link)) return NVML_ERROR_NOT_SUPPORTED;
    return nvml_give(NVML_NVLINK_DEVICE_TYPE_SWITCH, type);
}

static nvmlReturn_t remote(nvmlDevice_t handle, unsigned link, nvmlPciInfo_t *out) {
    FIND(handle);
    TRY(nvml_link(d, link));
    CHECK(out != NULL);
    if (d->nvidia_switches == 0 || !up(d, link)) return NVML_ERROR_NOT_SUPPORTED;
    *out = (nvmlPciInfo_t){.bus = d->nvidia_switch_bus + link % d->nvidia_switches};
    snprintf(out->busId, sizeof out->busId, "%08X:%02X:00.0", out->domain, out->bus);
    snprintf(out->busIdLegacy, sizeof out->busIdLegacy, "%04X:%02X:00.0", out->domain, out->bus);
    return NVML_SUCCESS;
}
NAMED(nvmlDeviceGetNvLinkRemotePciInfo_v2, remote,
      (nvmlDevice_t handle, unsigned link, nvmlPciInfo_t *out), (handle, link, out))

/* ---- its place among the others -------------------------------------------------------------- */

/* How many bridges, the root first, two devices have in common, and how many the deeper one has. */
static unsigned common_bridges(const char *a, const char *b, unsigned *deepest) {
    unsigned common = 0, depth[2] = {0, 0};
    const char *at[2] = {a, b};
    bool same = true;
    while (*at[0] || *at[1]) {
        size_t length[2] = {strcspn(at[0], "/"), strcspn(at[1], "/")};
        same = same && length[0] == length[1] && strncmp(at[0], at[1], length[0]) == 0;
        common += same;
        for (int i = 0; i < 2; i++) {
            depth[i] += length[i] > 0;
            at[i] += length[i];
            at[i] += *at[i] == '/';
        }
    }
    *deepest = depth[0] > depth[1] ? depth[0] : depth[1];
    return common;
}

NVML nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other, unsigned *level) {
    const struct hal_machine_device *peer;
    DEVICE(one);
    TRY(nvml_device_of(other, &peer));
    if (d == peer) return nvml_give(NVML_TOPOLOGY_INTERNAL, level);
    unsigned deepest, common = common_bridges(d->pci_path, peer->pci_path, &deepest);
    if (common == 1) return nvml_give(NVML_TOPOLOGY_HOSTBRIDGE, level);
    /* Below the switch that both hang on each has one port, or there are more switches. */
    if (common > 1 && deepest - common > 1) return nvml_give(NVML_TOPOLOGY_MULTIPLE, level);
    if (common > 1) return nvml_give(NVML_TOPOLOGY_SINGLE, level);
    bool near = d->numa_node == peer->numa_node && d->numa_node != HAL_UNKNOWN;
    return nvml_give(near ? NVML_TOPOLOGY_NODE : NVML_TOPOLOGY_SYSTEM, level);
}

static bool joined(const struct hal_machine_device *d) {
    uint32_t every = d->nvidia_links == 0 ? 0 : UINT32_MAX >> (32 - d->nvidia_links);
    return d->nvidia_switches > 0 && (every & ~d->nvidia_links_down) != 0;
}

NVML nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, unsigned index, unsigned *out) {
    const struct hal_machine_device *peer;
    DEVICE(one);
    TRY(nvml_device_of(other, &peer));
    CHECK(index < NVML_P2P_CAPS_INDEX_UNKNOWN);
    if (joined(d) && joined(peer)) return nvml_give(NVML_P2P_STATUS_OK, out);
    if (index == NVML_P2P_CAPS_INDEX_NVLINK) return nvml_give(NVML_P2P_STATUS_NOT_SUPPORTED, out);
    return nvml_give(d->numa_node == peer->numa_node ? NVML_P2P_STATUS_OK
                                                     : NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED,
                     out);
}

/* The host's NUMA node that is nearest, as a bit. Machine files know nothing of its processors. */
NVML nvmlDeviceGetMemoryAffinity(nvmlDevice_t handle, unsigned words, unsigned long *nodes,
                                 unsigned scope) {
    DEVICE(handle);
    (void)scope;
    CHECK(words > 0 && nodes != NULL);
    if (d->numa_node == HAL_UNKNOWN) return NVML_ERROR_NOT_SUPPORTED;
    if ((uint64_t)d->numa_node / 64 >= words) return NVML_ERROR_INSUFFICIENT_SIZE;
    memset(nodes, 0, words * sizeof *nodes);
    nodes[d->numa_node / 64] = 1ul << d->numa_node % 64;
    return NVML_SUCCESS;
}
