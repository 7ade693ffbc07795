// savedmodel_run: runs signatures of a SavedModel with no Python in the process, by the calls that
// TensorFlow Serving makes: DisableXlaCompilation() (the model server's default), LoadSavedModel
// with tag "serve", saved_model::GetInputValues(), Session::Run() on the signature's tensors. It
// has the kernels of the TensorFlow wheel, not of the server, and does not replay warm-up requests.
//
//   savedmodel_run DIR
//       lists signatures, inputs and outputs
//   savedmodel_run DIR SIGNATURE OUT [NAME=FILE ...] [-- SIGNATURE OUT [NAME=FILE ...]] ...
//       runs signatures, one after the other; FILE holds a serialized tensorflow.TensorProto, and
//       so will OUT/NAME.pb of each output
//
// Options, before DIR: --xla (allow XLA), --repeat=N (time N runs of each and print the mean).
// Exit status: 0 good, 2 the load failed, 3 a request failed, 4 usage or files.
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/cc/saved_model/util.h"
#include "tensorflow/compiler/jit/flags.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor.pb.h"
#include "tensorflow/core/public/session.h"
#include "tensorflow/core/public/session_options.h"

namespace {

using Arguments = std::vector<std::string>;

int Fail(int exit_status, const absl::Status& status) {
  std::cerr << "ERROR " << absl::StatusCodeToString(status.code()) << ": " << status.message()
            << std::endl;
  return exit_status;
}

std::string Describe(const tensorflow::TensorInfo& info) {
  std::ostringstream text;
  text << tensorflow::DataType_Name(info.dtype()) << " [";
  for (int i = 0; i < info.tensor_shape().dim_size(); ++i)
    text << (i ? "," : "") << info.tensor_shape().dim(i).size();
  text << (info.tensor_shape().unknown_rank() ? "?]" : "]");
  return text.str();
}

void List(const tensorflow::SavedModelBundle& bundle) {
  for (const auto& [name, signature] : bundle.GetSignatures()) {
    std::cout << "signature\t" << name << "\t" << signature.method_name() << "\n";
    for (const auto& [input, info] : signature.inputs())
      std::cout << "input\t" << name << "\t" << input << "\t" << Describe(info) << "\n";
    for (const auto& [output, info] : signature.outputs())
      std::cout << "output\t" << name << "\t" << output << "\t" << Describe(info) << "\n";
  }
}

// One request: SIGNATURE OUT [NAME=FILE ...].
int Run(const tensorflow::SavedModelBundle& bundle, const Arguments& arguments, int repeat) {
  const auto found = bundle.GetSignatures().find(arguments[0]);
  if (found == bundle.GetSignatures().end())
    return Fail(3, absl::FailedPreconditionError("Serving signature key \"" + arguments[0] +
                                                 "\" not found."));
  const tensorflow::SignatureDef& signature = found->second;
  google::protobuf::Map<std::string, tensorflow::TensorProto> request;
  for (size_t i = 2; i < arguments.size(); ++i) {
    const size_t equals = arguments[i].find('=');
    std::ifstream file;
    if (equals != std::string::npos)
      file.open(arguments[i].substr(equals + 1), std::ios::binary);
    if (!file.is_open() || !request[arguments[i].substr(0, equals)].ParseFromIstream(&file)) {
      std::cerr << "cannot read " << arguments[i] << std::endl;
      return 4;
    }
  }
  if (request.size() != signature.inputs().size() && signature.defaults().empty())
    return Fail(3, absl::InvalidArgumentError("input size does not match signature"));
  std::vector<std::pair<std::string, tensorflow::Tensor>> feeds;
  absl::Status status = tensorflow::saved_model::GetInputValues(signature, request, feeds);
  if (!status.ok()) return Fail(3, status);

  std::vector<std::string> names, fetches;
  for (const auto& [name, info] : signature.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }
  std::vector<tensorflow::Tensor> outputs;
  tensorflow::RunMetadata metadata;
  const auto run = [&] {
    return bundle.session->Run(tensorflow::RunOptions(), feeds, fetches, {}, &outputs, &metadata);
  };
  status = run();
  if (!status.ok()) return Fail(3, status);
  std::error_code error;
  std::filesystem::create_directories(arguments[1], error);
  for (size_t i = 0; i < outputs.size(); ++i) {
    tensorflow::TensorProto proto;
    outputs[i].AsProtoField(&proto);
    std::ofstream file(arguments[1] + "/" + names[i] + ".pb", std::ios::binary);
    if (!proto.SerializeToOstream(&file) || !file.flush()) {
      std::cerr << "cannot write " << arguments[1] << "/" << names[i] << ".pb" << std::endl;
      return 4;
    }
    std::cout << "output\t" << names[i] << "\t" << outputs[i].DebugString(8) << "\n";
  }
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeat; ++i)
    if (status = run(); !status.ok()) return Fail(3, status);
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
  if (repeat > 0) std::cout << "mean_us\t" << took.count() / repeat << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  bool xla = false;
  int repeat = 0;
  std::string directory;
  std::vector<Arguments> requests;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (directory.empty() && argument == "--xla")
      xla = true;
    else if (directory.empty() && argument.rfind("--repeat=", 0) == 0)
      repeat = std::atoi(argument.c_str() + 9);
    else if (directory.empty())
      directory = argument;
    else if (argument == "--")
      requests.emplace_back();
    else if (requests.empty())  // the first needs no "--"
      requests.push_back({argument});
    else
      requests.back().push_back(argument);
  }
  bool complete = !directory.empty();
  for (const Arguments& request : requests) complete = complete && request.size() >= 2;
  if (!complete) {
    std::cerr << "usage: savedmodel_run [--xla] [--repeat=N] DIR [SIGNATURE OUT [NAME=FILE ...] "
                 "[-- SIGNATURE OUT [NAME=FILE ...]] ...]\n";
    return 4;
  }
  if (!xla) tensorflow::DisableXlaCompilation();
  tensorflow::SavedModelBundle bundle;
  const absl::Status status = tensorflow::LoadSavedModel(
      tensorflow::SessionOptions(), tensorflow::RunOptions(), directory, {"serve"}, &bundle);
  if (!status.ok()) return Fail(2, status);
  if (requests.empty()) List(bundle);
  for (const Arguments& request : requests)
    if (const int exit_status = Run(bundle, request, repeat)) return exit_status;
  return 0;
}
