// Serves the batches of benchmarks.serve through a bundle, as a C++ consumer would.
//
//   serve model.pt THREADS, then a line for each run on stdin: the file of its batches, a pickled
//   list of tensors (ids, mask, ids, mask, …). Answers each with the seconds that it took.
#include <ATen/Parallel.h>
#include <torch/script.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: serve model.pt THREADS\n";
    return 2;
  }
  at::set_num_threads(std::atoi(argv[2]));
  torch::jit::Module bundle = torch::jit::load(argv[1]);
  bundle.eval();
  torch::jit::setGraphExecutorOptimize(false);
  torch::NoGradGuard no_grad;
  std::string path;
  while (std::getline(std::cin, path)) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file),
                                  std::istreambuf_iterator<char>()};
    const auto held = torch::jit::pickle_load(bytes);
    const auto tensors = held.toListRef();
    const auto started = std::chrono::steady_clock::now();
    for (size_t i = 0; i + 1 < tensors.size(); i += 2) {
      std::vector<torch::jit::IValue> inputs;
      inputs.emplace_back(tensors[i]);
      inputs.emplace_back(tensors[i + 1]);
      inputs.emplace_back(torch::zeros_like(tensors[i].toTensor()));  // token_type_ids
      bundle.forward(inputs);
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    std::cout << took.count() << std::endl;
  }
  return 0;
}
