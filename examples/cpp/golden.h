// Golden samples in C++: read the safetensors file that is published with a conversion, run each
// sample, and compare with what eager computed where the conversion was proved. The layout of the
// file is described in tracefleet/golden.py: every fact is a tensor, so that only the file's own
// header is JSON: {"name":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},...}.
#pragma once

#include <torch/script.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

namespace golden {

inline torch::ScalarType type_of(const std::string& name) {
  static const std::map<std::string, torch::ScalarType> types{
      {"F64", torch::kFloat64}, {"F32", torch::kFloat32}, {"F16", torch::kFloat16},
      {"BF16", torch::kBFloat16}, {"I64", torch::kInt64}, {"I32", torch::kInt32},
      {"U8", torch::kUInt8}, {"BOOL", torch::kBool}};
  const auto found = types.find(name);
  if (found == types.end()) throw std::runtime_error("golden samples: no type " + name);
  return found->second;
}

inline std::vector<int64_t> parse_numbers(const std::string& text) {
  static const std::regex number("[0-9]+");
  std::vector<int64_t> found;
  for (std::sregex_iterator one(text.begin(), text.end(), number), end; one != end; ++one)
    found.push_back(std::stoll(one->str()));
  return found;
}

// Every size and offset is checked against the file: it may be damaged.
inline std::map<std::string, torch::Tensor> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("golden samples: can't read " + path);
  const std::string data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  uint64_t size = 0;
  if (data.size() < sizeof size) throw std::runtime_error("golden samples: too short: " + path);
  std::memcpy(&size, data.data(), sizeof size);
  if (size > data.size() - sizeof size)
    throw std::runtime_error("golden samples: header longer than the file: " + path);
  const std::string header = data.substr(sizeof size, size);
  const size_t start = sizeof size + size, room = data.size() - start;

  static const std::regex entry(
      "\"([^\"]+)\":\\{\"dtype\":\"([A-Z0-9]+)\",\"shape\":\\[([0-9,]*)\\],"
      "\"data_offsets\":\\[([0-9,]+)\\]\\}");
  std::map<std::string, torch::Tensor> tensors;
  for (std::sregex_iterator one(header.begin(), header.end(), entry), end; one != end; ++one) {
    const std::string name = (*one)[1];
    const auto type = type_of((*one)[2]);
    const auto shape = parse_numbers((*one)[3]);
    const auto place = parse_numbers((*one)[4]);
    auto tensor = torch::empty(shape, type);
    if (place.size() != 2 || place[0] > place[1] || static_cast<size_t>(place[1]) > room ||
        static_cast<size_t>(place[1] - place[0]) != tensor.nbytes())
      throw std::runtime_error("golden samples: wrong offsets of " + name);
    std::memcpy(tensor.data_ptr(), data.data() + start + place[0], tensor.nbytes());
    tensors[name] = tensor;
  }
  return tensors;
}

inline std::string text_of(const torch::Tensor& bytes) {
  return std::string(static_cast<const char*>(bytes.data_ptr()), bytes.numel());
}

// Real values are kept as float16 where that is exact; the bundle takes `real`.
inline std::vector<torch::jit::IValue> inputs_of(
    const std::map<std::string, torch::Tensor>& tensors, const std::string& sample,
    torch::Device device, torch::ScalarType real) {
  std::vector<torch::jit::IValue> inputs;
  for (int place = 0;; ++place) {
    const auto found = tensors.find(sample + "/input/" + std::to_string(place));
    if (found == tensors.end()) return inputs;
    const auto& tensor = found->second;
    const auto type = tensor.is_floating_point() ? real : tensor.scalar_type();
    inputs.push_back(tensor.to(device, type));
  }
}

// Compare one output; returns whether it is within its bound, and says so.
inline bool compare(const std::map<std::string, torch::Tensor>& tensors, const std::string& start,
                    const std::string& label, const torch::Tensor& output) {
  const auto get = [&](const char* fact) { return tensors.at(start + fact); };
  const auto expected = get("/values").to(torch::kFloat64);
  const auto shape = get("/shape");
  const auto got = output.to(torch::kCPU);
  if (got.sizes().vec() !=
      std::vector<int64_t>(shape.data_ptr<int64_t>(), shape.data_ptr<int64_t>() + shape.numel())) {
    std::cout << label << " DIFFERS: shape " << got.sizes() << "\n";
    return false;
  }
  const auto stride = get("/stride").item<int64_t>();
  const auto values = got.flatten().slice(0, 0, got.numel(), stride).to(torch::kFloat64);
  const auto same = (values == expected) | (values.isnan() & expected.isnan());
  const auto error = torch::where(same, torch::zeros_like(values), (values - expected).abs());
  const double worst = error.numel() ? error.max().item<double>() : 0.0;
  const double bound = get("/bound").item<double>(), scale = get("/scale").item<double>();
  const bool ok = worst <= bound;  // false for NaN
  std::cout << label << " error " << (scale ? worst / scale : worst) << " allowed "
            << (scale ? bound / scale : bound) << (ok ? " same" : " DIFFERS") << "\n";
  return ok;
}

// Run every sample; returns how many outputs differ.
inline int check(torch::jit::Module& bundle, const std::string& path, torch::Device device,
                 torch::ScalarType real) {
  const auto tensors = read(path);
  int wrong = 0, outputs = 0;
  for (int number = 0; tensors.count(std::to_string(number) + "/name"); ++number) {
    const auto sample = std::to_string(number);
    const auto name = text_of(tensors.at(sample + "/name"));
    const auto returned =
        bundle.forward(inputs_of(tensors, sample, device, real)).toTuple()->elements();
    for (size_t place = 0; place < returned.size(); ++place, ++outputs) {
      const auto start = sample + "/output/" + std::to_string(place);
      const auto label = name + " output " + std::to_string(place);
      wrong += !compare(tensors, start, label, returned[place].toTensor());
    }
  }
  if (outputs == 0) throw std::runtime_error("golden samples: none in " + path);
  std::cout << outputs << " outputs, " << wrong << " differ\n";
  return wrong;
}

}  // namespace golden
