// Stands in for cuBLAS's header where the toolkit was installed without it, so that other files' syntax and types are
// still checked. Every function takes anything; nothing that is compiled with this is ever linked.
#pragma once

#define CUBLAS_VER_MAJOR 13
#define CUBLAS_VER_MINOR 0

typedef struct cublasContext * cublasHandle_t;

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_NOT_INITIALIZED, CUBLAS_STATUS_ALLOC_FAILED, CUBLAS_STATUS_INVALID_VALUE,
    CUBLAS_STATUS_ARCH_MISMATCH, CUBLAS_STATUS_MAPPING_ERROR, CUBLAS_STATUS_EXECUTION_FAILED,
    CUBLAS_STATUS_INTERNAL_ERROR, CUBLAS_STATUS_NOT_SUPPORTED,
};
enum cublasOperation_t   { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasComputeType_t { CUBLAS_COMPUTE_16F, CUBLAS_COMPUTE_32F };
enum cublasGemmAlgo_t    { CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DEFAULT_TENSOR_OP };
enum cublasMath_t        { CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH, CUBLAS_TF32_TENSOR_OP_MATH };
enum cublasSideMode_t    { CUBLAS_SIDE_LEFT, CUBLAS_SIDE_RIGHT };
enum cublasFillMode_t    { CUBLAS_FILL_MODE_LOWER, CUBLAS_FILL_MODE_UPPER };
enum cublasDiagType_t    { CUBLAS_DIAG_NON_UNIT, CUBLAS_DIAG_UNIT };

#define CUBLAS_STUB(name) \
    template <typename... Arguments> cublasStatus_t name(Arguments...) { return CUBLAS_STATUS_SUCCESS; }

CUBLAS_STUB(cublasCreate)
CUBLAS_STUB(cublasDestroy)
CUBLAS_STUB(cublasGemmBatchedEx)
CUBLAS_STUB(cublasGemmEx)
CUBLAS_STUB(cublasGemmStridedBatchedEx)
CUBLAS_STUB(cublasLoggerConfigure)
CUBLAS_STUB(cublasSetMathMode)
CUBLAS_STUB(cublasSetStream)
CUBLAS_STUB(cublasSetWorkspace)
CUBLAS_STUB(cublasSgemm)
CUBLAS_STUB(cublasSgemmBatched)
CUBLAS_STUB(cublasSgemmStridedBatched)
CUBLAS_STUB(cublasStrsmBatched)

inline const char * cublasGetStatusString(cublasStatus_t) {
    return "";
}
