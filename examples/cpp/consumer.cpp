// A C++ consumer of a conversion: load the bundle, call it with any rows and length, print a
// few values. Build and run: make cpp
//
//   consumer model.pt INPUTS ID [ID …]
//   consumer model.pt --check samples-….safetensors
//   consumer model.pt --generate TOKENS BEAMS ID [ID …]
//
// INPUTS is the number of inputs in the manifest (ids, then a mask of ones, then zeros). --check
// runs the golden samples that are published with the conversion, and returns 1 if any differs.
// --generate prints the ids of an encoder-decoder's answer, of at most TOKENS new ones; with BEAMS 1
// it searches greedily.
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

static at::Tensor read_row(int argc, char** argv, int first, const torch::Device& device) {
  std::vector<int64_t> ids;
  for (int i = first; i < argc; ++i) ids.push_back(std::atoll(argv[i]));
  return torch::tensor(ids, torch::kInt64).unsqueeze(0).to(device);  // one row
}

// The search is a method of the archive: no Python, and any thread may call it.
static void generate(torch::jit::Module& bundle, const at::Tensor& row, int64_t most,
                     int64_t beams) {
  const auto mask = torch::ones_like(row);
  const auto answer = bundle.run_method("generate", row, mask, most, beams).toTensor().cpu();
  for (int64_t i = 0; i < answer.size(1); ++i) {
    std::cout << (i == 0 ? "" : " ") << answer[0][i].item<int64_t>();
  }
  std::cout << "\n";
}

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: consumer model.pt INPUTS ID [ID ...]\n"
                 "       consumer model.pt --check samples-....safetensors\n"
                 "       consumer model.pt --generate TOKENS BEAMS ID [ID ...]\n";
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

    if (std::string(argv[2]) == "--generate" && argc > 5) {
      const auto row = read_row(argc, argv, 5, device);
      generate(bundle, row, std::atoll(argv[3]), std::atoll(argv[4]));
      return 0;
    }
    const auto tensor = read_row(argc, argv, 3, device);

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
