// Runs the golden samples of a pulled conversion and compares with what eager computed where it was
// proved. The file's layout is described in tracefleet/golden.py: safetensors, every fact a tensor.
//
//   golden FOLDER              exit code 1: an output differs; 2: it can't be opened
//
// DEVICE=cuda in the environment runs it there.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "tracefleet.hpp"

namespace {

using tracefleet::ArtifactError;
using tracefleet::Bundle;
using tracefleet::Tensors;

at::ScalarType type_of(const std::string& name) {
  static const std::map<std::string, at::ScalarType> types{
      {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
      {"I64", at::kLong},   {"I32", at::kInt},   {"U8", at::kByte},   {"BOOL", at::kBool}};
  const auto found = types.find(name);
  if (found == types.end()) throw ArtifactError("golden samples: no type " + name);
  return found->second;
}

// Every size and offset is checked against the file.
Tensors read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  uint64_t size = 0;
  if (data.size() < sizeof size) throw ArtifactError("golden samples: too short");
  std::memcpy(&size, data.data(), sizeof size);
  if (size > data.size() - sizeof size) throw ArtifactError("golden samples: too long a header");
  const size_t start = sizeof size + size, room = data.size() - start;
  Tensors tensors;
  const auto header = nlohmann::json::parse(data.substr(sizeof size, size));
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    auto tensor = at::empty(entry.at("shape").get<std::vector<int64_t>>(),
                            at::TensorOptions(type_of(entry.at("dtype"))));
    const auto place = entry.at("data_offsets").get<std::vector<size_t>>();
    if (place.size() != 2 || place[0] > place[1] || place[1] > room ||
        place[1] - place[0] != tensor.nbytes())
      throw ArtifactError("golden samples: wrong offsets of " + name);
    std::memcpy(tensor.data_ptr(), data.data() + start + place[0], tensor.nbytes());
    tensors[name] = tensor;
  }
  return tensors;
}

std::string text_of(const at::Tensor& bytes) {
  return std::string(static_cast<const char*>(bytes.data_ptr()), bytes.numel());
}

// Compares one output; returns whether it is within its bound, and says so.
bool compare(const Tensors& tensors, const std::string& start, const std::string& label,
             const at::Tensor& output) {
  const auto get = [&](const char* fact) { return tensors.at(start + fact); };
  const auto expected = get("/values").to(at::kDouble);
  const auto shape = get("/shape");
  const auto got = output.to(at::kCPU);
  if (got.sizes().vec() !=
      std::vector<int64_t>(shape.data_ptr<int64_t>(), shape.data_ptr<int64_t>() + shape.numel())) {
    std::cout << label << " DIFFERS: shape " << got.sizes() << "\n";
    return false;
  }
  const auto stride = get("/stride").item<int64_t>();
  const auto values = got.flatten().slice(0, 0, got.numel(), stride).to(at::kDouble);
  const auto same = (values == expected) | (values.isnan() & expected.isnan());
  const auto error = at::where(same, at::zeros_like(values), (values - expected).abs());
  const double worst = error.numel() ? error.max().item<double>() : 0.0;
  const double bound = get("/bound").item<double>(), scale = get("/scale").item<double>();
  const bool ok = worst <= bound;  // false for NaN
  std::cout << label << " error " << (scale ? worst / scale : worst) << " allowed "
            << (scale ? bound / scale : bound) << (ok ? " same" : " DIFFERS") << "\n";
  return ok;
}

// Real values are kept as float16 where that is exact; the bundle takes the manifest's type.
std::vector<at::Tensor> inputs_of(const Bundle& bundle, const Tensors& tensors,
                                  const std::string& sample) {
  std::vector<at::Tensor> inputs;
  for (const auto& spec : bundle.manifest().inputs)
    inputs.push_back(
        tensors.at(sample + "/input/" + std::to_string(inputs.size())).to(spec.dtype));
  return inputs;
}

int check(const Bundle& bundle) {
  const auto tensors = read(bundle.samples());
  const auto& specs = bundle.manifest().outputs;
  int wrong = 0, outputs = 0;
  for (int number = 0; tensors.count(std::to_string(number) + "/name"); ++number) {
    const auto sample = std::to_string(number);
    const auto name = text_of(tensors.at(sample + "/name"));
    const auto returned = bundle.run(inputs_of(bundle, tensors, sample));
    for (size_t place = 0; place < returned.size(); ++place, ++outputs) {
      const auto start = sample + "/output/" + std::to_string(place);
      wrong += !compare(tensors, start, name + " " + specs[place].name, returned[place]);
    }
  }
  if (outputs == 0) throw ArtifactError("golden samples: none");
  std::cout << outputs << " outputs, " << wrong << " differ\n";
  return wrong;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: golden FOLDER\n";
    return 2;
  }
  try {
    tracefleet::Options options;
    if (const char* device = std::getenv("DEVICE")) options.device = device;
    return check(Bundle(argv[1], options)) == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
