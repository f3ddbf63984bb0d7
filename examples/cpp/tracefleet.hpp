// tracefleet.hpp: opens a conversion as the Python reader does, with libtorch and without Python.
//
//   const tracefleet::Bundle bundle("./pulled");                // a folder that `pull` wrote
//   const auto outputs = bundle({{"input_ids", ids}});          // by name; int64, (rows, tokens)
//   const at::Tensor logits = outputs.at("logits");
//
// The manifest says which inputs there are, in which order and of which types; every file's digest
// is checked before libtorch sees a byte; what the Python reader refuses is refused here in the
// same words, before the call. One bundle serves any number of threads. C++17, POSIX; needs
// libtorch, nlohmann-json and OpenSSL's libcrypto. docs/cpp.md has the CMake text.
#pragma once

#include <fcntl.h>
#include <openssl/evp.h>
#include <torch/script.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tracefleet {

// The names are those of tracefleet.errors. Python's ValueError is InputError here.
struct ArtifactError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct ManifestError : ArtifactError {
  using ArtifactError::ArtifactError;
};
struct StoreError : ArtifactError {
  using ArtifactError::ArtifactError;
};
struct BackendUnavailableError : ArtifactError {
  using ArtifactError::ArtifactError;
};
struct NoGenerationError : ArtifactError {
  using ArtifactError::ArtifactError;
};
struct NoSamplesError : ArtifactError {
  using ArtifactError::ArtifactError;
};
struct InputError : ArtifactError {
  using ArtifactError::ArtifactError;
};
struct InputTooLongError : InputError {
  using InputError::InputError;
};
struct AnswerTooLongError : InputError {
  using InputError::InputError;
};
struct DigestMismatchError : ArtifactError {
  DigestMismatchError(const std::string& file, const std::string& wanted, const std::string& found)
      : ArtifactError(file + ": sha256 expected " + wanted + ", got " + found +
                      ". The file is damaged or was edited; nothing was loaded. Pull it again."),
        path(file), expected(wanted), got(found) {}
  std::string path, expected, got;
};

using Rows = std::vector<std::vector<int64_t>>;
using Tensors = std::map<std::string, at::Tensor>;

struct Argument {  // an input, or an output, which has neither pad nor fill
  std::string name;
  at::ScalarType dtype;
  std::vector<std::string> axes;  // "batch", "length", "decoder_length", or a number
  std::optional<int64_t> pad_value, fill_value;
};

struct FileEntry {
  std::string path, sha256, media_type;
  uint64_t size = 0;
};

struct Manifest {
  std::string source, key, task, dtype, device, left_padding;
  std::string torch_version, opens_with;  // what it was made with; what it needs, torch>=X.Y
  bool follows_device = false;
  std::vector<int64_t> lengths;  // ascending
  std::vector<Argument> inputs, outputs;
  std::vector<FileEntry> files;  // golden samples last
  std::optional<FileEntry> samples;
  std::optional<int64_t> shortest;  // rows from here on run unpadded; none: nowhere
  nlohmann::json raw;               // all of it

  const FileEntry& bundle() const;
};

struct Options {
  std::string device = "cpu";
};

namespace detail {

template <typename Items>
std::string join(const Items& items, const std::string& between = ", ") {
  std::ostringstream text;
  for (auto one = items.begin(); one != items.end(); ++one)
    text << (one == items.begin() ? "" : between) << *one;
  return text.str();
}

inline std::string shape_of(const at::Tensor& tensor) { return "(" + join(tensor.sizes()) + ")"; }

inline bool is_length(const std::string& axis) {
  return axis == "length" || axis == "decoder_length";
}

inline bool is_number(const std::string& axis) {
  return !axis.empty() && axis.find_first_not_of("0123456789") == std::string::npos;
}

inline at::ScalarType type_of(const std::string& name) {
  static const std::map<std::string, at::ScalarType> types{
      {"int64", at::kLong}, {"int32", at::kInt}, {"float32", at::kFloat},
      {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}, {"float64", at::kDouble},
      {"bool", at::kBool}};
  const auto found = types.find(name);
  if (found == types.end()) throw ManifestError("manifest: unknown dtype " + name);
  return found->second;
}

// A path that leaves the conversion's folder would have another file loaded in its place.
inline void check_relative(const std::string& path) {
  const std::filesystem::path parts(path);
  bool safe = !path.empty() && parts.is_relative() && parts.lexically_normal() == parts;
  for (const auto& part : parts) safe = safe && part != ".." && part != ".";
  if (!safe) throw ManifestError("manifest: expected a path inside the folder, got '" + path + "'");
}

inline FileEntry read_file_entry(const nlohmann::json& raw) {
  FileEntry file{raw.at("path"), raw.at("sha256"), raw.at("media_type"), raw.at("size")};
  check_relative(file.path);
  const bool hex = file.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!hex || file.sha256.size() != 64)
    throw ManifestError(file.path + ": sha256 expected 64 hex digits, got '" + file.sha256 + "'");
  return file;
}

inline std::optional<int64_t> read_optional(const nlohmann::json& raw, const char* name) {
  if (!raw.contains(name) || raw[name].is_null()) return std::nullopt;
  return raw[name].get<int64_t>();
}

inline std::vector<Argument> read_arguments(const nlohmann::json& raw) {
  std::vector<Argument> found;
  for (const auto& one : raw)
    found.push_back({one.at("name"), type_of(one.at("dtype")), one.at("axes"),
                     read_optional(one, "pad_value"), read_optional(one, "fill_value")});
  return found;
}

inline void check_contents(const Manifest& manifest) {
  const auto& lengths = manifest.lengths;
  const auto unordered = std::adjacent_find(lengths.begin(), lengths.end(), std::greater_equal<>());
  if (lengths.empty() || lengths[0] < 1 || unordered != lengths.end())
    throw ManifestError("manifest: lengths expected ascending, got " + join(lengths));
  const std::string backend = manifest.raw.at("variant").at("backend");
  if (backend != "jit")
    throw BackendUnavailableError("manifest: expected backend jit, got " + backend +
                                  ", whose programs need a Neuron device. Open it in Python.");
  const std::string verdict = manifest.raw.at("validation").at("verdict");
  if (verdict != "validated")
    throw ManifestError("manifest: verdict expected 'validated', got '" + verdict + "'");
}

inline Manifest read_manifest(const nlohmann::json& raw) {
  const int64_t schema = raw.at("schema");
  if (schema < 1 || schema > 3)
    throw ManifestError("manifest: schema expected 1 to 3, got " + std::to_string(schema) +
                        ". Take the tracefleet.hpp of the version that published it.");
  Manifest manifest;
  manifest.raw = raw;
  manifest.source = raw.at("source");
  manifest.key = raw.at("key");
  manifest.task = raw.at("variant").at("task");
  manifest.dtype = raw.at("variant").at("dtype");
  manifest.torch_version = raw.at("toolchain").at("torch");
  // A manifest without it is of an earlier version: tracefleet/opens_with.py says the same.
  manifest.opens_with = raw.value("opens_with", "torch>=2.6");
  manifest.lengths = raw.at("lengths").get<std::vector<int64_t>>();
  manifest.inputs = read_arguments(raw.at("inputs"));
  manifest.outputs = read_arguments(raw.at("outputs"));
  for (const auto& one : raw.at("files")) manifest.files.push_back(read_file_entry(one));
  const auto& validation = raw.at("validation");
  manifest.left_padding = validation.value("left_padding", "untried");
  if (validation.contains("samples") && !validation["samples"].is_null()) {
    manifest.samples = read_file_entry(validation["samples"]);
    manifest.files.push_back(*manifest.samples);
  }
  manifest.follows_device = raw.value("follows_device", false);
  if (raw.contains("device") && raw["device"].is_string()) manifest.device = raw["device"];
  if (raw.contains("general") && raw["general"].is_object())
    manifest.shortest = raw["general"].at("shortest").get<int64_t>();
  check_contents(manifest);
  return manifest;
}

// A file that stays open: what is loaded is what was checked, whatever happens to its name.
class CheckedFile {
 public:
  CheckedFile(const std::filesystem::path& folder, const FileEntry& file)
      : descriptor_(::open((folder / file.path).c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0)
      throw StoreError(file.path + ": can't be read in " + folder.string() + ". Pull it again.");
    const std::string got = digest();
    if (got != file.sha256) {
      ::close(descriptor_);
      throw DigestMismatchError(file.path, file.sha256, got);
    }
  }
  ~CheckedFile() { ::close(descriptor_); }
  CheckedFile(const CheckedFile&) = delete;
  CheckedFile& operator=(const CheckedFile&) = delete;

  std::string path() const { return "/dev/fd/" + std::to_string(descriptor_); }

 private:
  std::string digest() const {
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> state(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
    EVP_DigestInit_ex(state.get(), EVP_sha256(), nullptr);
    std::vector<char> buffer(1 << 20);
    ssize_t size = 0;
    while ((size = ::read(descriptor_, buffer.data(), buffer.size())) > 0)
      EVP_DigestUpdate(state.get(), buffer.data(), static_cast<size_t>(size));
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned int count = 0;
    EVP_DigestFinal_ex(state.get(), bytes, &count);
    std::string hex;
    for (unsigned int i = 0; i < count; ++i) {
      hex += "0123456789abcdef"[bytes[i] >> 4];
      hex += "0123456789abcdef"[bytes[i] & 15];
    }
    return hex;
  }

  int descriptor_;
};

inline std::string last_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

inline std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

inline at::Tensor convert(const Argument& spec, at::Tensor tensor) {
  if (!tensor.defined()) throw InputError(spec.name + ": expected a tensor, got none");
  const bool whole = !at::isFloatingType(spec.dtype);
  const auto kind = tensor.scalar_type();
  if (whole && !at::isIntegralType(kind, /*includeBool=*/false))
    throw InputError(spec.name + ": expected integers, got " + c10::toString(kind) +
                     ". Convert it yourself if that loses nothing.");
  if (!whole && !at::isFloatingType(kind))
    throw InputError(spec.name + ": expected real numbers as the checkpoint's processor returns " +
                     "them, got " + c10::toString(kind));
  const auto axes = static_cast<int64_t>(spec.axes.size());
  if (tensor.dim() == axes - 1) tensor = tensor.unsqueeze(0);
  if (tensor.dim() != axes)
    throw InputError(spec.name + ": expected shape (" + join(spec.axes) +
                     "), or one row without its batch axis, got " + shape_of(tensor));
  if (tensor.numel() == 0)
    throw InputError(spec.name + ": expected at least one row and one token, got shape " +
                     shape_of(tensor));
  if (whole && tensor.min().item<int64_t>() < 0)
    throw InputError(spec.name + ": expected whole numbers from 0, got " +
                     std::to_string(tensor.min().item<int64_t>()));
  return tensor.to(spec.dtype);
}

inline int64_t smallest_fit(const std::vector<int64_t>& lengths, int64_t tokens) {
  const auto found = std::lower_bound(lengths.begin(), lengths.end(), tokens);
  if (found == lengths.end())
    throw InputTooLongError("input has " + std::to_string(tokens) + " tokens; expected at most " +
                            std::to_string(lengths.back()) +
                            ", the largest standard length of this conversion. Truncate the "
                            "input or convert with a longer length.");
  return *found;
}

inline void check_length(const Manifest& manifest, const Argument& spec, int64_t size,
                         bool as_it_is) {
  const bool exact = smallest_fit(manifest.lengths, size) == size;
  const bool unpadded = manifest.shortest && size >= *manifest.shortest;
  if (!spec.pad_value && !exact && !unpadded && !as_it_is)
    throw InputError(spec.name + ": expected a length of " + join(manifest.lengths) +
                     (manifest.shortest ? ", or at least " + std::to_string(*manifest.shortest)
                                        : std::string()) +
                     ", got " + std::to_string(size) +
                     ": padding would change the result of this model");
}

// The size of each named axis, which all inputs that have the axis share.
inline std::map<std::string, int64_t> match_sizes(const Manifest& manifest,
                                                  const std::vector<Argument>& specs,
                                                  const Tensors& tensors, bool as_it_is) {
  std::map<std::string, int64_t> sizes;
  std::map<std::string, std::string> source;
  for (const auto& spec : specs) {
    const auto found = tensors.find(spec.name);
    if (found == tensors.end()) continue;
    for (size_t place = 0; place < spec.axes.size(); ++place) {
      const auto& axis = spec.axes[place];
      const int64_t size = found->second.size(static_cast<int64_t>(place));
      if (is_number(axis) && size != std::stoll(axis))
        throw InputError(spec.name + ": expected shape (" + join(spec.axes) + "), got " +
                         shape_of(found->second));
      if (is_number(axis)) continue;
      source.emplace(axis, spec.name);
      const int64_t expected = sizes.emplace(axis, size).first->second;
      if (expected != size)
        throw InputError(spec.name + ": expected " + axis + " " + std::to_string(expected) +
                         " as in " + source[axis] + ", got " + std::to_string(size));
      if (is_length(axis)) check_length(manifest, spec, size, as_it_is);
    }
  }
  return sizes;
}

// What the model itself assumes for an input that was left out.
inline at::Tensor fill(const Argument& spec, const std::map<std::string, int64_t>& sizes) {
  std::vector<int64_t> shape;
  for (const auto& axis : spec.axes) {
    const auto known = sizes.find(axis);
    if (!spec.fill_value || (known == sizes.end() && !is_number(axis)))
      throw InputError(spec.name + ": this conversion needs it, with axes (" + join(spec.axes) +
                       "); got none");
    shape.push_back(is_number(axis) ? std::stoll(axis) : known->second);
  }
  return at::full(shape, *spec.fill_value, at::TensorOptions(spec.dtype));
}

inline std::vector<at::Tensor> arrange(const Manifest& manifest, const std::vector<Argument>& specs,
                                       const Tensors& given, bool as_it_is = false) {
  std::map<std::string, const Argument*> by_name;
  std::vector<std::string> names;
  for (const auto& spec : specs) {
    by_name[spec.name] = &spec;
    names.push_back(spec.name);
  }
  Tensors tensors;
  for (const auto& [name, value] : given) {
    if (by_name.count(name) == 0)
      throw InputError("unknown input " + name + "; this conversion takes " + join(names));
    tensors[name] = convert(*by_name[name], value);
  }
  const auto sizes = match_sizes(manifest, specs, tensors, as_it_is);
  std::vector<at::Tensor> arranged;
  for (const auto& spec : specs) {
    const auto found = tensors.find(spec.name);
    arranged.push_back(found == tensors.end() ? fill(spec, sizes) : found->second);
  }
  return arranged;
}

// Of a model whose rows may not have padding on both sides: see left_padding of the manifest.
inline void refuse_left_padded(const Manifest& manifest, const std::vector<at::Tensor>& tensors) {
  if (manifest.left_padding != "differs") return;
  int64_t longest = 0;
  at::Tensor mask;
  for (size_t place = 0; place < tensors.size(); ++place) {
    const auto& spec = manifest.inputs[place];
    if (spec.name == "attention_mask") mask = tensors[place];
    const auto axis = std::find_if(spec.axes.begin(), spec.axes.end(), is_length);
    if (axis != spec.axes.end())
      longest = std::max(longest, tensors[place].size(axis - spec.axes.begin()));
  }
  if (!mask.defined() || (manifest.shortest && longest >= *manifest.shortest)) return;
  if (mask.size(-1) == smallest_fit(manifest.lengths, longest)) return;
  const auto shown = mask.ne(0);
  const auto last = mask.size(-1);
  const auto begins = shown.narrow(-1, 1, last - 1) & ~shown.narrow(-1, 0, last - 1);
  if (begins.any().item<bool>())
    throw InputError("attention_mask: expected ones, then zeros, got a zero before a one in a row "
                     "of " + std::to_string(last) + " tokens, which are padded on the right as "
                     "well: both together change the result of this model. Pad on the right "
                     "alone, or on the left to exactly " + join(manifest.lengths) + " tokens.");
}

// Int8 weights are packed for the engine that is chosen while they are loaded.
class UsingInt8Engine {
 public:
  explicit UsingInt8Engine(bool needed) : before_(at::globalContext().qEngine()) {
    changed_ = needed && before_ != at::QEngine::FBGEMM && before_ != at::QEngine::X86;
    if (changed_) at::globalContext().setQEngine(at::QEngine::FBGEMM);
  }
  ~UsingInt8Engine() {
    if (changed_) at::globalContext().setQEngine(before_);
  }
  UsingInt8Engine(const UsingInt8Engine&) = delete;
  UsingInt8Engine& operator=(const UsingInt8Engine&) = delete;

 private:
  at::QEngine before_;
  bool changed_ = false;
};

// Thrown away with the call: libtorch keeps both settings for each thread by itself.
struct Quietly {
  c10::InferenceMode inference;
  // The profiling executor takes seconds for the first two calls, and again for new shapes.
  torch::jit::GraphOptimizerEnabledGuard unoptimised{false};
};

}  // namespace detail

inline const FileEntry& Manifest::bundle() const {
  const FileEntry* found = nullptr;
  int count = 0;
  for (const auto& file : files) {
    if (file.media_type != "application/vnd.torchscript") continue;
    found = &file;
    ++count;
  }
  if (count != 1)
    throw ManifestError("manifest: expected one TorchScript file, got " + std::to_string(count));
  return *found;
}

// Reads manifest.json of a pulled folder. Throws StoreError, ManifestError.
inline Manifest load_manifest(const std::filesystem::path& folder) {
  std::ifstream file(folder / "manifest.json", std::ios::binary);
  if (!file)
    throw StoreError(folder.string() + ": expected a folder with manifest.json, as `tracefleet pull "
                     "STORE NAME --to FOLDER` writes it");
  try {
    return detail::read_manifest(nlohmann::json::parse(file));
  } catch (const nlohmann::json::exception& error) {
    throw ManifestError(std::string("manifest: expected tracefleet's manifest.json, got: ") +
                        error.what() + ". Pull the conversion again.");
  }
}

// Rows of ids as one tensor; shorter ones are padded on the right and masked. Throws InputError
// where padding would change the result.
inline Tensors pad_rows(const Manifest& manifest, const Rows& rows) {
  const Argument* ids = nullptr;
  bool masks = false;
  for (const auto& spec : manifest.inputs) {
    if (spec.name == "input_ids") ids = &spec;
    masks = masks || spec.name == "attention_mask";
  }
  if (ids == nullptr) throw InputError("this conversion takes no input_ids");
  size_t longest = 0, shortest = std::numeric_limits<size_t>::max();
  for (const auto& row : rows) {
    longest = std::max(longest, row.size());
    shortest = std::min(shortest, row.size());
  }
  if (rows.empty() || shortest == 0)
    throw InputError("input_ids: expected at least one token in each row, got none");
  if (longest != shortest && (!ids->pad_value || !masks))
    throw InputError("input_ids: expected rows of one length: this conversion can't hide padding. "
                     "Call it row by row.");
  const std::vector<int64_t> shape{static_cast<int64_t>(rows.size()),
                                   static_cast<int64_t>(longest)};
  auto tensor = at::full(shape, ids->pad_value.value_or(0), at::kLong);
  auto mask = at::zeros(shape, at::kLong);
  for (size_t row = 0; row < rows.size(); ++row) {
    std::copy(rows[row].begin(), rows[row].end(),
              tensor.data_ptr<int64_t>() + row * longest);
    std::fill_n(mask.data_ptr<int64_t>() + row * longest, rows[row].size(), 1);
  }
  if (longest == shortest) return {{"input_ids", tensor}};
  return {{"input_ids", tensor}, {"attention_mask", mask}};
}

class Bundle {
 public:
  // Throws StoreError, ManifestError, DigestMismatchError, BackendUnavailableError, ArtifactError.
  explicit Bundle(const std::filesystem::path& folder, const Options& options = {})
      : manifest_(load_manifest(folder)), device_(choose_device(options)) {
    check_torch();
    const auto& archive = manifest_.bundle();
    for (const auto& file : manifest_.files)
      if (&file != &archive) detail::CheckedFile(folder, file);
    const detail::CheckedFile checked(folder, archive);
    const detail::UsingInt8Engine engine(manifest_.dtype == "int8");
    try {
      module_ = torch::jit::load(checked.path(), c10::kCPU);
      module_.eval();
      module_.to(device_);
    } catch (const std::exception& error) {
      throw ArtifactError(archive.path + ": libtorch " TORCH_VERSION " can't load it: " +
                          detail::first_line(error.what()) + ". Its bytes are as published; it " +
                          "was made with torch " + manifest_.torch_version + ".");
    }
    if (manifest_.samples) samples_ = folder / manifest_.samples->path;
  }

  const Manifest& manifest() const { return manifest_; }

  // Runs rows of any number and length up to the largest standard length. What is left out gets
  // the value that the model itself assumes. The outputs are on the bundle's device.
  // Throws InputError, InputTooLongError.
  Tensors operator()(const Tensors& given) const {
    const auto arranged = detail::arrange(manifest_, manifest_.inputs, given);
    detail::refuse_left_padded(manifest_, arranged);
    return name(run(arranged));
  }

  // Rows that may differ in length.
  Tensors operator()(const Rows& rows) const { return (*this)(pad_rows(manifest_, rows)); }

  // The ids of an encoder-decoder's answers. -1: as the checkpoint's generation config says.
  // Throws NoGenerationError, AnswerTooLongError, InputError, InputTooLongError.
  at::Tensor generate(const Tensors& given, int64_t max_new_tokens = -1,
                      int64_t num_beams = -1) const {
    const auto made = find_generation();
    const int64_t most = max_new_tokens == -1 ? made.at("max_new_tokens").get<int64_t>()
                                              : max_new_tokens;
    const int64_t beams = num_beams == -1 ? made.at("num_beams").get<int64_t>() : num_beams;
    check_search(most, beams);
    std::vector<Argument> specs;
    for (const auto& spec : manifest_.inputs)
      if (spec.name == "input_ids" || spec.name == "attention_mask") specs.push_back(spec);
    const auto arranged = detail::arrange(manifest_, specs, given, /*as_it_is=*/true);
    if (!arranged.at(1).sum(1).ne(0).all().item<bool>())
      throw InputError("attention_mask: expected at least one token in each row, got none");
    std::vector<c10::IValue> arguments = move(arranged);
    arguments.emplace_back(most);
    arguments.emplace_back(beams);
    return call("generate", std::move(arguments)).toTensor();
  }

  // Runs tensors as they are, in the manifest's order: for checks.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& tensors) const {
    const auto returned = call("forward", move(tensors)).toTuple();
    std::vector<at::Tensor> outputs;
    for (const auto& one : returned->elements()) outputs.push_back(one.toTensor());
    if (outputs.size() != manifest_.outputs.size())
      throw ManifestError("manifest: " + std::to_string(manifest_.outputs.size()) +
                          " outputs expected, the bundle returned " +
                          std::to_string(outputs.size()));
    return outputs;
  }

  // Path of the golden samples, whose digest was checked. Throws NoSamplesError.
  const std::filesystem::path& samples() const {
    if (samples_.empty())
      throw NoSamplesError(manifest_.source + ": it was published without golden samples");
    return samples_;
  }

 private:
  c10::Device choose_device(const Options& options) const {
    const auto refuse = [&](const std::string& why) {
      throw BackendUnavailableError("manifest: " + why + ", got device " + options.device);
    };
    if (manifest_.dtype == "int8") {
      const auto& engines = at::globalContext().supportedQEngines();
      if (std::find(engines.begin(), engines.end(), at::QEngine::FBGEMM) == engines.end())
        refuse("int8 expected fbgemm, which libtorch has on x86 alone");
    }
    const c10::Device device(options.device);
    if (device.is_cpu()) return device;
    if (manifest_.dtype == "int8") refuse("int8 runs on x86 CPUs alone");
    if (!manifest_.follows_device) refuse("its graph is bound to " + manifest_.device);
    return device;
  }

  // In an older libtorch a bundle may load and give other numbers.
  void check_torch() const {
    int major = 0, minor = 0, end = 0;
    if (std::sscanf(manifest_.opens_with.c_str(), "torch>=%3d.%3d%n", &major, &minor, &end) != 2 ||
        static_cast<size_t>(end) != manifest_.opens_with.size())
      throw ManifestError("manifest: opens_with expected torch>=X.Y, got '" +
                          manifest_.opens_with + "'");
    if (std::pair(TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR) < std::pair(major, minor))
      throw BackendUnavailableError("manifest: expected " + manifest_.opens_with +
                                    ", got libtorch " TORCH_VERSION ": the bundle was made with " +
                                    manifest_.torch_version + ", and in an older one its numbers " +
                                    "may be others. Link a newer libtorch.");
  }

  nlohmann::json find_generation() const {
    const auto& raw = manifest_.raw;
    if (raw.contains("generation") && raw["generation"].is_object()) return raw["generation"];
    const bool told = raw.contains("without_generation") && raw["without_generation"].is_string();
    throw NoGenerationError(
        manifest_.source + ": expected a conversion that generates, got one that does not: " +
        (told ? raw["without_generation"].get<std::string>() : "task " + manifest_.task));
  }

  void check_search(int64_t most, int64_t beams) const {
    for (const auto& [name, value] : {std::pair("max_new_tokens", most), {"num_beams", beams}})
      if (value < 1)
        throw InputError(std::string(name) + ": expected a whole number of at least 1, got " +
                         std::to_string(value));
    if (most > manifest_.lengths.back())
      throw AnswerTooLongError("max_new_tokens: expected at most " +
                               std::to_string(manifest_.lengths.back()) +
                               ", the largest standard length of this conversion, got " +
                               std::to_string(most));
  }

  std::vector<c10::IValue> move(const std::vector<at::Tensor>& tensors) const {
    std::vector<c10::IValue> moved;
    for (const auto& tensor : tensors) moved.emplace_back(tensor.to(device_));
    return moved;
  }

  c10::IValue call(const char* method, std::vector<c10::IValue> arguments) const {
    const detail::Quietly quietly;
    try {
      return module_.get_method(method)(std::move(arguments));
    } catch (const std::exception& error) {
      const std::string text = error.what();
      if (text.find("index out of range") != std::string::npos)
        throw InputError("input_ids: an id is outside the model's vocabulary. Use the tokenizer "
                         "of " + manifest_.source + ".");
      // TorchScript's own traceback comes first, what the bundle refuses last.
      throw ArtifactError(manifest_.source + ": " + detail::last_line(text));
    }
  }

  Tensors name(const std::vector<at::Tensor>& outputs) const {
    Tensors named;
    for (size_t place = 0; place < outputs.size(); ++place)
      named[manifest_.outputs[place].name] = outputs[place];
    return named;
  }

  Manifest manifest_;
  c10::Device device_;
  torch::jit::Module module_;
  std::filesystem::path samples_;
};

}  // namespace tracefleet
