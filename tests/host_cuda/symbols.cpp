// The names of kernels. They have internal linkage, so the dynamic linker does not know them; the program's own symbol table does, unless it was stripped.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "model.h"

namespace host_cuda {
namespace {

template <class T>
std::vector<T> read_table(std::ifstream& file, uint64_t offset, uint64_t bytes) {
  std::vector<T> table(bytes / sizeof(T));
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(reinterpret_cast<char*>(table.data()), static_cast<std::streamsize>(table.size() * sizeof(T)));
  if (!file) table.clear();
  return table;
}

// The mangled name of the function at `address`, or "".
std::string find_symbol(const void* address) {
  Dl_info object;
  if (!dladdr(address, &object)) return {};
  std::ifstream file(object.dli_fname, std::ios::binary);
  if (!file) file.open("/proc/self/exe", std::ios::binary);
  const std::vector<Elf64_Ehdr> header = read_table<Elf64_Ehdr>(file, 0, sizeof(Elf64_Ehdr));
  if (header.empty() || std::memcmp(header[0].e_ident, ELFMAG, SELFMAG) != 0) return {};
  const uint64_t base = header[0].e_type == ET_DYN ? reinterpret_cast<uint64_t>(object.dli_fbase) : 0, value = reinterpret_cast<uint64_t>(address) - base;
  const auto sections = read_table<Elf64_Shdr>(file, header[0].e_shoff, uint64_t{header[0].e_shnum} * sizeof(Elf64_Shdr));
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections.size()) continue;
    const auto names = read_table<char>(file, sections[section.sh_link].sh_offset, sections[section.sh_link].sh_size);
    for (const Elf64_Sym& symbol : read_table<Elf64_Sym>(file, section.sh_offset, section.sh_size))
      if (symbol.st_value == value && ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && symbol.st_name < names.size()) return names.data() + symbol.st_name;
  }
  return {};
}

// "void fovea::kernels::cuda::(anonymous namespace)::softmax_rows<float>(float const*, float*)" -> "softmax_rows<float>".
std::string shorten(std::string name) {
  int depth = 0;
  size_t end = name.size();
  for (size_t i = name.size(); i-- > 0;) {                       // the parameters are the last pair of parentheses outside of angle brackets
    if (name[i] == ')' || name[i] == '>') ++depth;
    if (name[i] == '(' || name[i] == '<') --depth;
    if (depth == 0 && name[i] == '(') {
      end = i;
      break;
    }
  }
  name.resize(end);
  size_t begin = 0;
  depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '<' || name[i] == '(') ++depth;
    if (name[i] == '>' || name[i] == ')') --depth;
    if (depth == 0 && (name[i] == ' ' || (name[i] == ':' && i > 0 && name[i - 1] == ':'))) begin = i + 1;
  }
  return name.substr(begin);
}

}  // namespace

std::string name_of_kernel(const void* kernel) {
  const std::string mangled = find_symbol(kernel);
  if (mangled.empty()) return text("at ", kernel);
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  const std::string name = status == 0 ? shorten(demangled) : mangled;
  std::free(demangled);
  return name;
}

}  // namespace host_cuda
