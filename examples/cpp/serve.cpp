// Answers requests from standard input, one JSON object a line, with several threads on one bundle.
//
//   serve FOLDER [THREADS] < requests.jsonl
//
//   {"rows": [[101, 7592, 102], [101, 102]]}               rows of ids that may differ in length
//   {"inputs": {"input_ids": [[101, 7592, 102]]}}          by name; numbers with a point are reals
//   {"generate": {"input_ids": [[20, 30]]}, "max_new_tokens": 12, "num_beams": 4}
//
// Answers come in the order of the requests: {"logits": {"shape": [1, 2], "values": [...]}}, or
// {"error": "InputTooLongError", "message": "..."}. DEVICE=cuda in the environment runs it there.
#include <atomic>
#include <cstdlib>
#include <thread>

#include "tracefleet.hpp"

namespace {

using nlohmann::json;

void flatten(const json& value, std::vector<double>& reals, std::vector<int64_t>& whole,
             std::vector<int64_t>& shape, size_t depth = 0) {
  if (!value.is_array()) {
    if (!value.is_number()) throw tracefleet::InputError("expected numbers, got " + value.dump());
    reals.push_back(value.get<double>());
    if (value.is_number_integer()) whole.push_back(value.get<int64_t>());
    return;
  }
  const auto size = static_cast<int64_t>(value.size());
  if (shape.size() == depth) shape.push_back(size);
  if (shape[depth] != size) throw tracefleet::InputError("expected rows of one length");
  for (const auto& one : value) flatten(one, reals, whole, shape, depth + 1);
}

at::Tensor to_tensor(const json& value) {
  std::vector<double> reals;
  std::vector<int64_t> whole, shape;
  flatten(value, reals, whole, shape);
  const auto tensor =
      whole.size() == reals.size() ? at::tensor(whole, at::kLong) : at::tensor(reals, at::kDouble);
  return tensor.reshape(shape);
}

tracefleet::Tensors to_tensors(const json& named) {
  tracefleet::Tensors tensors;
  for (const auto& [name, value] : named.items()) tensors[name] = to_tensor(value);
  return tensors;
}

json to_json(const at::Tensor& tensor) {
  const auto type = tensor.is_floating_point() ? at::kDouble : at::kLong;
  const auto flat = tensor.to(at::kCPU, type).contiguous().flatten();
  json values = json::array();
  for (int64_t i = 0; i < flat.numel(); ++i) {
    if (type == at::kDouble) values.push_back(flat.data_ptr<double>()[i]);
    else values.push_back(flat.data_ptr<int64_t>()[i]);
  }
  return {{"shape", tensor.sizes().vec()}, {"values", values}};
}

json answer(const tracefleet::Bundle& bundle, const json& request) {
  if (request.contains("generate"))
    return {{"ids", to_json(bundle.generate(to_tensors(request["generate"]),
                                            request.value("max_new_tokens", int64_t{-1}),
                                            request.value("num_beams", int64_t{-1})))}};
  const auto outputs = request.contains("rows")
                           ? bundle(request["rows"].get<tracefleet::Rows>())
                           : bundle(to_tensors(request.at("inputs")));
  json named = json::object();
  for (const auto& [name, tensor] : outputs) named[name] = to_json(tensor);
  return named;
}

json tell(const char* kind, const std::exception& error) {
  return {{"error", kind}, {"message", error.what()}};
}

// Catches from the most special type to the least, as any caller may.
template <typename Work>
json guard(const Work& work) {
  try {
    return work();
  } catch (const tracefleet::InputTooLongError& error) {
    return tell("InputTooLongError", error);
  } catch (const tracefleet::AnswerTooLongError& error) {
    return tell("AnswerTooLongError", error);
  } catch (const tracefleet::InputError& error) {
    return tell("InputError", error);
  } catch (const tracefleet::NoGenerationError& error) {
    return tell("NoGenerationError", error);
  } catch (const tracefleet::DigestMismatchError& error) {
    return tell("DigestMismatchError", error);
  } catch (const tracefleet::ManifestError& error) {
    return tell("ManifestError", error);
  } catch (const tracefleet::StoreError& error) {
    return tell("StoreError", error);
  } catch (const tracefleet::BackendUnavailableError& error) {
    return tell("BackendUnavailableError", error);
  } catch (const tracefleet::ArtifactError& error) {
    return tell("ArtifactError", error);
  } catch (const std::exception& error) {  // a line that is no request
    return tell("exception", error);
  }
}

void serve(const tracefleet::Bundle& bundle, int count) {
  std::vector<std::string> lines;
  for (std::string line; std::getline(std::cin, line);) lines.push_back(line);
  std::vector<json> answers(lines.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t place; (place = next++) < lines.size();)
      answers[place] = guard([&] { return answer(bundle, json::parse(lines[place])); });
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(work);
  for (auto& thread : threads) thread.join();
  for (const auto& one : answers) std::cout << one.dump() << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: serve FOLDER [THREADS] < requests.jsonl\n";
    return 2;
  }
  const json failed = guard([&]() -> json {
    tracefleet::Options options;
    if (const char* device = std::getenv("DEVICE")) options.device = device;
    const tracefleet::Bundle bundle(argv[1], options);
    serve(bundle, argc > 2 ? std::max(1, std::atoi(argv[2])) : 1);
    return nullptr;
  });
  if (failed.is_null()) return 0;
  std::cerr << failed.dump() << "\n";
  return 1;
}
