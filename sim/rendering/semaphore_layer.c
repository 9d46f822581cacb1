/* A Vulkan layer that lets SAPIEN run on Mesa's lavapipe before 25.2.
 *
 * SAPIEN requires VK_KHR_external_semaphore_fd, which older lavapipe lacks and which SAPIEN needs only to share
 * frames with CUDA. The layer (a) adds the name to what the device reports, (b) takes it out of vkCreateDevice
 * again, (c) drops the export request from vkCreateSemaphore. Everything else passes through.
 */
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define LAYER "VK_LAYER_VLA_RL_semaphore"
#define EXTENSION VK_KHR_EXTERNAL_SEMAPHORE_FD_EXTENSION_NAME
#define EXPORT __attribute__((visibility("default")))

static VkInstance instance;
static PFN_vkGetInstanceProcAddr next_instance_proc;
static PFN_vkGetDeviceProcAddr next_device_proc;
static PFN_vkEnumerateDeviceExtensionProperties next_enumerate;
static PFN_vkCreateSemaphore next_create_semaphore;

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *memory, VkInstance *out) {
  VkLayerInstanceCreateInfo *link = (void *)info->pNext;
  while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO))
    link = (void *)link->pNext;
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  next_instance_proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  PFN_vkCreateInstance create = (PFN_vkCreateInstance)next_instance_proc(NULL, "vkCreateInstance");
  VkResult result = create(info, memory, out);
  if (result != VK_SUCCESS) return result;
  instance = *out;
  /* Asked for later, the loader would answer with this very layer's function. */
  next_enumerate = (PFN_vkEnumerateDeviceExtensionProperties)next_instance_proc(*out, "vkEnumerateDeviceExtensionProperties");
  return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL enumerate_extensions(VkPhysicalDevice device, const char *layer, uint32_t *count,
                                                           VkExtensionProperties *properties) {
  if (layer && strcmp(layer, LAYER) == 0) { *count = 0; return VK_SUCCESS; }
  uint32_t have = 0;
  VkResult result = next_enumerate(device, NULL, &have, NULL);
  if (result != VK_SUCCESS) return result;
  VkExtensionProperties *all = calloc(have + 1, sizeof *all);
  if (!all) return VK_ERROR_OUT_OF_HOST_MEMORY;
  next_enumerate(device, NULL, &have, all);
  int present = 0;
  for (uint32_t i = 0; i < have; i++) present |= strcmp(all[i].extensionName, EXTENSION) == 0;
  if (!present) {
    strcpy(all[have].extensionName, EXTENSION);
    all[have++].specVersion = 1;
  }
  if (!properties) { *count = have; free(all); return VK_SUCCESS; }
  uint32_t given = *count < have ? *count : have;
  memcpy(properties, all, given * sizeof *all);
  *count = given;
  free(all);
  return given < have ? VK_INCOMPLETE : VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_semaphore(VkDevice device, const VkSemaphoreCreateInfo *info,
                                                       const VkAllocationCallbacks *memory, VkSemaphore *out) {
  VkSemaphoreCreateInfo copy = *info;
  const VkBaseInStructure *first = copy.pNext;
  if (first && first->sType == VK_STRUCTURE_TYPE_EXPORT_SEMAPHORE_CREATE_INFO) copy.pNext = first->pNext;
  return next_create_semaphore(device, &copy, memory, out);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *memory, VkDevice *out) {
  VkLayerDeviceCreateInfo *link = (void *)info->pNext;
  while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO))
    link = (void *)link->pNext;
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  PFN_vkGetInstanceProcAddr instance_proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  next_device_proc = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  VkDeviceCreateInfo copy = *info;
  const char **names = calloc(copy.enabledExtensionCount + 1, sizeof *names);
  if (!names) return VK_ERROR_OUT_OF_HOST_MEMORY;
  uint32_t kept = 0;
  for (uint32_t i = 0; i < copy.enabledExtensionCount; i++)
    if (strcmp(copy.ppEnabledExtensionNames[i], EXTENSION) != 0) names[kept++] = copy.ppEnabledExtensionNames[i];
  copy.enabledExtensionCount = kept;
  copy.ppEnabledExtensionNames = names;
  PFN_vkCreateDevice create = (PFN_vkCreateDevice)instance_proc(instance, "vkCreateDevice");
  VkResult result = create(physical, &copy, memory, out);
  free(names);
  if (result == VK_SUCCESS) next_create_semaphore = (PFN_vkCreateSemaphore)next_device_proc(*out, "vkCreateSemaphore");
  return result;
}

EXPORT PFN_vkVoidFunction VKAPI_CALL vla_rl_device_proc(VkDevice device, const char *name) {
  if (strcmp(name, "vkCreateSemaphore") == 0) return (PFN_vkVoidFunction)create_semaphore;
  if (strcmp(name, "vkGetDeviceProcAddr") == 0) return (PFN_vkVoidFunction)vla_rl_device_proc;
  return next_device_proc(device, name);
}

EXPORT PFN_vkVoidFunction VKAPI_CALL vla_rl_instance_proc(VkInstance of, const char *name) {
  if (strcmp(name, "vkCreateInstance") == 0) return (PFN_vkVoidFunction)create_instance;
  if (strcmp(name, "vkCreateDevice") == 0) return (PFN_vkVoidFunction)create_device;
  if (strcmp(name, "vkEnumerateDeviceExtensionProperties") == 0) return (PFN_vkVoidFunction)enumerate_extensions;
  if (strcmp(name, "vkCreateSemaphore") == 0) return (PFN_vkVoidFunction)create_semaphore;
  if (strcmp(name, "vkGetInstanceProcAddr") == 0) return (PFN_vkVoidFunction)vla_rl_instance_proc;
  if (strcmp(name, "vkGetDeviceProcAddr") == 0) return (PFN_vkVoidFunction)vla_rl_device_proc;
  return next_instance_proc ? next_instance_proc(of, name) : NULL;
}
