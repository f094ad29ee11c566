"""Stand-ins for CANN's libraries, so that MindSpore's Ascend plugin loads and compiles on a CPU.

Every function that the plugin asks for and the wheel does not define is there and returns 0; three that are
used while a graph is compiled do a little more. All names come from the installed wheel, nothing from CANN.
Only a process that `environment` was made for finds them.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

TOOLS = ("g++", "nm", "ldd")
LOADED_LATER = ("libopapi.so", "libacl_op_compiler.so", "libacl_tdt_channel.so", "libge_runner.so")
"""Libraries that the plugin opens by name while it runs."""
_FOREIGN = re.compile(r"_ZNK?2ge|acl|rt[A-Z]|Hccl|hal|dsmi|Msprof|ge[A-Z]")
_LOOKED_UP = re.compile(rb"\0((?:acl(?!nn)[a-z]*[A-Z]|aclnn[A-Z]|Hccl[A-Z]|rt[A-Z])\w+)(?=\0)")
_WITH_A_BODY = """
#include <map>
#include <memory>
#include <string>
extern "C" const char *aclrtGetSocName() { return "Ascend910B1"; }
extern "C" int aclrtGetDeviceCount(unsigned *count) { *count = 1; return 0; }
struct Texts { std::map<unsigned, std::string> of; };
extern "C" Texts *_ZN2ge13StatusFactory8InstanceEv() { static Texts texts; return &texts; }
namespace ge {
struct AscendString {
  std::shared_ptr<std::string> text;
  AscendString(const char *);
  const char *GetString() const;
  bool operator<(const AscendString &) const;
};
AscendString::AscendString(const char *from) : text(from ? new std::string(from) : nullptr) {}
const char *AscendString::GetString() const { return text ? text->c_str() : ""; }
bool AscendString::operator<(const AscendString &other) const {
  return std::string(GetString()) < other.GetString();
}
}
"""
"""What is used while a graph is compiled: one chip and its name, the texts of errors, strings."""


def package() -> Path:
    """Where MindSpore is installed."""
    spec = find_spec("mindspore")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def missing_tools() -> list[str]:
    """What is not there of the programs that `build` calls."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def build(folder: Path) -> Path:
    """Write the stand-ins below `folder`; the folder they are in, for `environment`. Takes seconds."""
    # The plugin finds CANN by this part of the path.
    to = folder / "latest" / "lib64"
    to.mkdir(parents=True)
    own, empty, library = (to / name for name in ("own.o", "empty.cc", "libstandins.so"))
    options = ["g++", "-shared", "-fPIC", "-w", "-D_GLIBCXX_USE_CXX11_ABI=0"]
    _run(*options, "-c", "-o", str(own), "-xc++", "-", text=_WITH_A_BODY)
    empty.write_text(_empty(_wanted() - _symbols("--defined-only", [own], "-g")))
    _run(*options, str(own), str(empty), f"-Wl,-soname,{library.name}", "-o", str(library))
    for name in {*LOADED_LATER, *absent_libraries(library_path(""))}:
        (to / name).symlink_to(library.name)
    return to


def environment(standins: Path) -> dict[str, str]:
    """The variables of a process that finds the stand-ins and simulates a device."""
    variables = {"ASCEND_HOME_PATH": str(standins.parent), "MS_SIMULATION_LEVEL": "1"}
    return os.environ | variables | {"LD_LIBRARY_PATH": library_path(str(standins))}


def library_path(first: str) -> str:
    """LD_LIBRARY_PATH with which the plugin finds the libraries of `first` and those of the wheel."""
    lib = package() / "lib"
    return ":".join(map(str, (first, lib, lib / "plugin", lib / "plugin" / "ascend")))


def plugin() -> list[Path]:
    """The libraries of MindSpore's Ascend plugin."""
    folder = package() / "lib" / "plugin"
    own = [folder / "libmindspore_ascend.so.2", folder / "libmindspore_ops_ascend.so"]
    below = (folder / "ascend").rglob
    return [*own, *(folder / "ascend").glob("lib*.so"), *below("libshmem.so"), *below("libmf_*.so")]


def _wanted() -> set[str]:
    """Names of CANN's functions: linked, or looked up by name, and nowhere in the wheel."""
    libraries = plugin()
    names = {name for name in _symbols("--undefined-only", libraries) if _FOREIGN.match(name)}
    for library in libraries:
        looked_up = {found.decode() for found in _LOOKED_UP.findall(library.read_bytes())}
        kernels = {name for name in looked_up if name.startswith("aclnn")}
        names |= looked_up | {f"{name}GetWorkspaceSize" for name in kernels}
    return names - _symbols("--defined-only", [*(package() / "lib").glob("*.so*"), *libraries])


def _symbols(kind: str, libraries: Iterable[Path], table: str = "-D") -> set[str]:
    """Symbols of the libraries, of their dynamic table; weak ones left out, which may be absent."""
    said = _run("nm", table, kind, *map(str, libraries))
    return {name.split("@")[0] for name in re.findall(r"^(?: +U|[0-9a-f]+ .) (\S+)$", said, re.M)}


def absent_libraries(path: str) -> set[str]:
    """Names of the libraries that the plugin itself is linked with and that are nowhere on `path`."""
    # ldd ends with 1 where one is absent.
    ldd = subprocess.run(
        ["ldd", *map(str, plugin()[:2])],
        env=os.environ | {"LD_LIBRARY_PATH": path},
        capture_output=True,
        text=True,
    )
    return set(re.findall(r"^\s+(\S+) => not found$", ldd.stdout, re.M))


def _empty(names: set[str]) -> str:
    """C++ that defines them all: functions that return 0, constructors that empty an object's first words."""
    lines = [
        'extern "C" {',
        "long nothing() { return 0; }",
        "void empty(void **self) { self[0] = self[1] = nullptr; }",
        "void empty_operator(void **self) { self[1] = self[2] = nullptr; }",
    ]
    for name in sorted(names):
        operator, constructor = (
            re.match(start, name) for start in (r"_ZN2ge8OperatorC[12]", r"_ZN2ge.*C[12]E")
        )
        body = "empty_operator" if operator else "empty" if constructor else "nothing"
        result = "void" if body != "nothing" else "long"
        lines.append(f'{result} {name}() __attribute__((alias("{body}")));')
    return "\n".join([*lines, "}", ""])


def _run(*command: str, text: str = "") -> str:
    return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout
