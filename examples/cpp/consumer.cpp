// A C++ consumer of a conversion: load the bundle, call it with any rows and length, print a
// few values. Build and run: make cpp
//
//   consumer model.pt INPUTS ID [ID …]
//   consumer model.pt --check samples/….safetensors
//
// INPUTS is the number of inputs in the manifest (ids, then a mask of ones, then zeros). --check
// runs the golden samples that are published with the conversion, and returns 1 if any differs.
// With DEVICE=cuda in the environment it runs on a GPU: a bundle whose manifest says
// follows_device runs where its weights and inputs are. REAL=float16 (or bfloat16) is the type of
// pixels and sounds of a conversion of that dtype.
#include <torch/script.h>

#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "golden.h"

// int8 weights are packed for fbgemm, which torch has on x86 alone.
static bool runs_int8() {
  for (const auto engine : at::globalContext().supportedQEngines()) {
    if (engine == at::QEngine::FBGEMM) return true;
  }
  return false;
}

static torch::ScalarType real_type() {
  const char* chosen = std::getenv("REAL");
  const std::string name = chosen == nullptr ? "float32" : chosen;
  if (name == "float16") return torch::kFloat16;
  return name == "bfloat16" ? torch::kBFloat16 : torch::kFloat32;
}

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: consumer model.pt INPUTS ID [ID ...]\n"
                 "       consumer model.pt --check samples/....safetensors\n";
    return 2;
  }
  try {
    torch::jit::Module bundle = torch::jit::load(argv[1]);
    bundle.eval();
    const char* chosen = std::getenv("DEVICE");
    const torch::Device device(chosen == nullptr ? "cpu" : chosen);
    bundle.to(device);
    // The profiling executor takes seconds for the first two calls, and again for new shapes.
    torch::jit::setGraphExecutorOptimize(false);
    torch::NoGradGuard no_grad;

    if (std::string(argv[2]) == "--check") {
      return golden::check(bundle, argv[3], device, real_type()) == 0 ? 0 : 1;
    }

    std::vector<int64_t> ids;
    for (int i = 3; i < argc; ++i) ids.push_back(std::atoll(argv[i]));
    const auto tensor = torch::tensor(ids, torch::kInt64).unsqueeze(0).to(device);  // one row

    std::vector<torch::jit::IValue> inputs{tensor};
    const int count = std::atoi(argv[2]);
    if (count > 1) inputs.push_back(torch::ones_like(tensor));   // attention_mask
    if (count > 2) inputs.push_back(torch::zeros_like(tensor));  // token_type_ids

    // forward() takes any rows and length: it runs them as they are where that was proved, else it
    // routes to the smallest standard length that fits, pads, runs and slices.
    const auto outputs = bundle.forward(inputs).toTuple()->elements();
    for (size_t i = 0; i < outputs.size(); ++i) {
      const auto output = outputs[i].toTensor();
      std::cout << "output " << i << " " << output.sizes() << " sum "
                << output.to(torch::kCPU, torch::kFloat64).sum().item<double>() << "\n";
    }
  } catch (const c10::Error& error) {
    std::cerr << "error: " << error.what_without_backtrace() << "\n";
    if (!runs_int8()) {
      std::cerr << "This CPU's torch can't run int8 conversions (no fbgemm): if this is one, use "
                   "an x86 CPU, or the float32 conversion.\n";
    }
    return 1;
  } catch (const std::exception& error) {  // what the bundle itself refuses, such as its length
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
