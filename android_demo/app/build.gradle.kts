import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android)
    alias(libs.plugins.kotlin.android)
}

/** The bundle that goes into the app: -Pbundle=folder, else the one of the Python package. */
val bundle = file(providers.gradleProperty("bundle").getOrElse("$rootDir/../ced_edge/models/tiny"))

/** Of a bundle the app needs the int8 .onnx file, the labels and bundle.json. */
val copyBundle = tasks.register<Copy>("copyBundle") {
    from(bundle) { include("bundle.json", "labels.txt", "*-int8.onnx") }
    into(layout.buildDirectory.dir("bundle-assets/bundle"))
    doFirst { require(File(bundle, "bundle.json").isFile) { "no bundle in $bundle: give one with -Pbundle=folder" } }
}

android {
    namespace = "org.cededge.demo"
    compileSdk = 35
    defaultConfig {
        applicationId = "org.cededge.demo"
        minSdk = 26
        targetSdk = 35
        versionCode = 1
        versionName = "1.0"
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles("proguard.txt")
            signingConfig = signingConfigs.getByName("debug")
        }
    }
    splits.abi {
        isEnable = true
        reset()
        include("arm64-v8a", "armeabi-v7a", "x86_64")
    }
    packaging.jniLibs.useLegacyPackaging = true // compressed libraries, as build_apk.sh makes them
    androidResources.noCompress += "onnx"
    sourceSets["main"].assets.srcDir(layout.buildDirectory.dir("bundle-assets"))
    testOptions.unitTests {
        isIncludeAndroidResources = true
        all {
            it.systemProperty("android_demo", rootDir.path)
            it.systemProperty("bundle", bundle.path)
        }
    }
}

kotlin.compilerOptions.jvmTarget.set(JvmTarget.JVM_1_8)

tasks.named("preBuild") { dependsOn(copyBundle) }

dependencies {
    implementation(project(":core"))
    implementation(libs.onnxruntime.android)
    testImplementation(libs.junit)
    testImplementation(libs.robolectric)
    testImplementation(libs.onnxruntime.desktop)
}
