"""What amdgpu and KFD show below /sys and /proc, fabricated."""

UNIQUE = 0x0A1B2C3D4E5F6071


class Root:
    """A fabricated root with cards in it."""

    def __init__(self, path):
        self.path = path

    def write(self, name, text):
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def card(self, bdf, number, **files):
        folder = f"sys/bus/pci/drivers/amdgpu/{bdf}"
        facts = {
            "vendor": "0x1002",
            "device": "0x740f",
            "numa_node": 1,
            "unique_id": f"{UNIQUE + number:016x}",
            "mem_info_vram_total": 64 << 30,
            "mem_info_vram_used": 1 << 30,
            "mem_info_gtt_total": 32 << 30,
            "mem_info_gtt_used": 0,
            "gpu_busy_percent": 25,
            "mem_busy_percent": 5,
            "hwmon/hwmon3/power1_average": 42_000_000,
            "hwmon/hwmon3/power1_cap": 300_000_000,
            "hwmon/hwmon3/temp1_label": "edge",
            "hwmon/hwmon3/temp1_input": 35_000,
            "hwmon/hwmon3/temp2_label": "junction",
            "hwmon/hwmon3/temp2_input": 41_000,
        } | files
        for name, value in facts.items():
            if value is not None:
                self.write(f"{folder}/{name}", value)
        (self.path / folder / f"drm/card{number}").mkdir(parents=True)
        (self.path / folder / f"drm/renderD{128 + number}").mkdir(parents=True)

    def client(self, pid, descriptor, node, **facts):
        """A DRM client of a process."""
        fd = self.path / f"proc/{pid}/fd/{descriptor}"
        fd.parent.mkdir(parents=True, exist_ok=True)
        fd.symlink_to(f"/dev/dri/{node}")
        if not (self.path / f"proc/{pid}/comm").exists():
            self.write(f"proc/{pid}/comm", "client")
        lines = "".join(f"{key}:\t{value}\n" for key, value in facts.items())
        self.write(f"proc/{pid}/fdinfo/{descriptor}", f"pos:\t0\n{lines}")

    def node(self, number, gpu_id, location, unique, simds=416, simds_per_cu=4, gfx=90010):
        folder = f"sys/class/kfd/kfd/topology/nodes/{number}"
        self.write(f"{folder}/gpu_id", gpu_id)
        self.write(
            f"{folder}/properties",
            f"simd_count {simds}\nsimd_per_cu {simds_per_cu}\nlocation_id {location}\ndomain 0\n"
            f"gfx_target_version {gfx}\nunique_id {unique}\n",
        )
