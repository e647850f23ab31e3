"""Conan 2 recipe. From the source tree: conan create cmake/conan --build=missing"""

import os

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, rmdir

required_conan_version = ">=2.0"


class FlywheelConan(ConanFile):
    name = "flywheel"
    version = "0.1.0"
    license = "Apache-2.0"
    description = "Run, measure, compress, breed and route small AI models inside another program"
    topics = ("inference", "gguf", "language-model", "embedded")
    package_type = "library"
    implements = ["auto_shared_fpic"]
    settings = "os", "arch", "compiler", "build_type"
    options = {
        "shared": [True, False],
        "fPIC": [True, False],
        "with_tbb": [True, False],
        "with_command": [True, False],
    }
    default_options = {"shared": False, "fPIC": True, "with_tbb": True, "with_command": False}

    def export_sources(self):
        root = os.path.join(self.recipe_folder, os.pardir, os.pardir)
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "kernels/*", "src/*", "examples/models/*"):
            copy(self, pattern, root, self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def requirements(self):
        # None of these appears in a public header.
        self.requires("nlohmann_json/3.11.3", visible=False)
        self.requires("pcre2/10.42")
        self.requires("utf8proc/2.9.0")
        self.requires("yaml-cpp/0.8.0")
        self.requires("openssl/[>=3 <4]")
        if self.options.with_tbb:
            self.requires("onetbb/2021.12.0")
        if self.options.with_command:
            self.requires("cli11/2.4.2", visible=False)

    def validate(self):
        check_min_cppstd(self, 20)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["FLYWHEEL_WITH_TBB"] = bool(self.options.with_tbb)
        toolchain.cache_variables["FLYWHEEL_BUILD_CLI"] = bool(self.options.with_command)
        toolchain.cache_variables["FLYWHEEL_BUILD_TESTS"] = False
        toolchain.cache_variables["FLYWHEEL_BUILD_EXAMPLES"] = False
        toolchain.cache_variables["FLYWHEEL_CCACHE"] = False
        toolchain.cache_variables["FLYWHEEL_INSTALL"] = True
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        rmdir(self, os.path.join(self.package_folder, "lib", "cmake"))
        rmdir(self, os.path.join(self.package_folder, "lib", "pkgconfig"))
        rmdir(self, os.path.join(self.package_folder, "share", "licenses"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "flywheel")
        self.cpp_info.set_property("pkg_config_name", "flywheel")
        library = self.cpp_info.components["library"]
        library.set_property("cmake_target_name", "flywheel::flywheel")
        library.libs = ["flywheel"]
        library.requires = ["nlohmann_json::nlohmann_json", "pcre2::pcre2-8", "utf8proc::utf8proc", "yaml-cpp::yaml-cpp",
                            "openssl::crypto"]
        if self.options.with_tbb:
            library.requires.append("onetbb::libtbb")
        if self.options.with_command:
            library.requires.append("cli11::cli11")
        if self.settings.os in ("Linux", "FreeBSD"):
            library.system_libs = ["pthread"]
